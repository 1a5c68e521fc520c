"""sentence-transformers' names over this engine: `from llcuda_ffi.compat.sentence_transformers import …`."""

from __future__ import annotations

from . import util
from .cross_encoder import CrossEncoder
from .model import SentenceTransformer
from .quantization import quantize_embeddings

__all__ = ["CrossEncoder", "SentenceTransformer", "quantize_embeddings", "util"]
