"""vLLM's module of adapters."""
