"""vLLM's present engine."""
