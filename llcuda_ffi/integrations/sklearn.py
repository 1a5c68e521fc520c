"""scikit-learn: a transformer from texts to vectors, for pipelines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin

from ..embedder import Embedder


class EmbeddingTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Texts to rows of numbers; the model is loaded at the first use and is not pickled."""

    def __init__(self, model: str = "all-minilm-l6-v2", dim: int | None = None, truncate: bool = True) -> None:
        self.model = model
        self.dim = dim
        self.truncate = truncate

    def fit(self, X: Iterable[str], y: Any = None) -> EmbeddingTransformer:
        """Nothing is learned."""
        return self

    def transform(self, X: Iterable[str]) -> npt.NDArray[np.float32]:
        """Vectors of texts, float32 (n, dim)."""
        found: npt.NDArray[np.float32] = self._open().encode(X, dim=self.dim, truncate=self.truncate)
        return found

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[Any]:
        """A name for each number of a vector; for set_output and ColumnTransformer."""
        return np.array([f"embedding{i}" for i in range(self.dim or self._open().dim)], object)

    def _open(self) -> Embedder:
        if getattr(self, "_embedder", None) is None:
            self._embedder = Embedder(self.model)
        return self._embedder

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_embedder"}
