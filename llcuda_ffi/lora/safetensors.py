"""The reader of safetensors files stands with the other file formats, where conversion needs it too."""

from ..gguf.safetensors import SafeTensors, write_safetensors

__all__ = ["SafeTensors", "write_safetensors"]
