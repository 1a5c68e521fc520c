"""The development tools behind build_ffi.py: C declarations as text, and profiles made from a new llama.cpp."""
