"""sentence-transformers' names over this engine: `from llcuda_ffi.compat.sentence_transformers import …`."""

from __future__ import annotations

from typing import Any

from ... import __version__
from ...errors import InvalidRequest
from . import util
from .cross_encoder import CrossEncoder
from .model import SentenceTransformer
from .quantization import quantize_embeddings
from .similarity_functions import SimilarityFunction

__all__ = ["CrossEncoder", "SentenceTransformer", "SimilarityFunction", "__version__", "quantize_embeddings", "util"]

_TRAINING = (
    "InputExample", "SentenceTransformerTrainer", "SentenceTransformerTrainingArguments", "SentencesDataset",
    "datasets", "evaluation", "losses", "models", "readers", "training_args",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _TRAINING or name.endswith(("Trainer", "TrainingArguments", "ModelCardData")):
        raise InvalidRequest(f"{name} is for training: train with sentence-transformers, then llcuda-ffi model convert")
    if name in ("SparseEncoder", "MultiVectorEncoder"):
        raise InvalidRequest(f"{name} is not here: vectors of llama.cpp are dense, one a text (SentenceTransformer)")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
