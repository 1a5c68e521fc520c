"""Python binding to llama.cpp."""
