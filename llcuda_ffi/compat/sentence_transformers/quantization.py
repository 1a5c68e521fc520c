"""sentence-transformers' module for vectors in fewer bits."""

from __future__ import annotations

from ...embedding.precision import quantize_embeddings

__all__ = ["quantize_embeddings"]
