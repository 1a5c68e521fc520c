"""Weights of other formats turned into GGUF files."""
