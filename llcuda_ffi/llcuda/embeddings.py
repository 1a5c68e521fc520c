"""EmbeddingEngine, SemanticSearch and TextClustering."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.model import Model
from ..embedder import Embedder
from ..embedding.text_model import check_texts
from ..errors import InvalidRequest, MissingExtra
from ..params import INT32_MAX, integer, items
from .engine import InferenceEngine

Floats = npt.NDArray[np.float32]


class EmbeddingEngine:
    """Vectors of texts, the newest cache_size of them remembered.

    Args:
        engine: a model's reference, a Model, an Embedder, or an InferenceEngine, whose weights are then shared.
        pooling: "mean", "cls" or "last".
    """

    def __init__(
        self,
        engine: InferenceEngine | Embedder | Model | str | os.PathLike[str],
        pooling: str = "mean",
        normalize: bool = True,
        cache_size: int = 1000,
    ) -> None:
        self.cache_size = integer("cache_size", cache_size, 0, INT32_MAX)
        self._owned = not isinstance(engine, Embedder)
        if isinstance(engine, Embedder):
            self.embedder = engine
        else:
            model = engine.llm.model if isinstance(engine, InferenceEngine) else engine
            self.embedder = Embedder(model, pooling=pooling)
        self.normalize = normalize
        self._cache: OrderedDict[str, Floats] = OrderedDict()

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return self.embedder.dim

    def embed(self, text: str) -> Floats:
        """The vector of a text, float32 of shape (dimension,)."""
        row: Floats = self.embed_batch([text])[0]
        return row

    def embed_batch(self, texts: Sequence[str]) -> Floats:
        """The vectors of texts, float32 of shape (n, dimension); those not remembered are computed together."""
        wanted = check_texts(texts)
        missing = [text for text in dict.fromkeys(wanted) if text not in self._cache]
        fresh = (
            dict(zip(missing, self.embedder.encode(missing, normalize=self.normalize), strict=True)) if missing else {}
        )
        rows = [fresh[text] if text in fresh else self._cache[text] for text in wanted]
        for text in wanted:
            if text in fresh:
                self._cache[text] = fresh[text]
            self._cache.move_to_end(text)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return np.stack(rows) if rows else np.empty((0, self.dimension), np.float32)

    def clear_cache(self) -> None:
        """Forget the vectors."""
        self._cache.clear()

    def close(self) -> None:
        """Free the embedder, unless it was given."""
        if self._owned:
            self.embedder.close()


class SemanticSearch:
    """The documents nearest in meaning, by cosine."""

    def __init__(self, embedder: EmbeddingEngine) -> None:
        self.embedder = embedder
        self.documents: list[str] = []
        self.metadata: list[Any] = []
        self._vectors: Floats = np.empty((0, embedder.dimension), np.float32)

    def add_documents(self, documents: Sequence[str], metadata: Sequence[Any] | None = None) -> None:
        """Add documents, each with something to remember with it."""
        added = check_texts(documents)
        about = [None] * len(added) if metadata is None else list(items("metadata", metadata))
        if len(about) != len(added):
            raise InvalidRequest(f"{len(about)} metadata for {len(added)} documents: give one for each")
        vectors = self.embedder.embed_batch(added)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._vectors = np.concatenate([self._vectors, vectors / np.where(norms > 0, norms, 1)])
        self.documents += added
        self.metadata += about

    def search(self, query: str, top_k: int = 5) -> list[tuple[str, float, Any]]:
        """(document, cosine, metadata) of the nearest documents, nearest first."""
        most = integer("top_k", top_k, 1, INT32_MAX)
        vector = self.embedder.embed(query)
        scores = self._vectors @ (vector / (np.linalg.norm(vector) or 1))
        nearest = np.argsort(-scores, kind="stable")[:most]
        return [(self.documents[i], float(scores[i]), self.metadata[i]) for i in nearest]


class TextClustering:
    """Groups of texts by meaning: k-means over their vectors (scikit-learn)."""

    def __init__(self, embedder: EmbeddingEngine, n_clusters: int = 5, seed: int = 0) -> None:
        self.embedder = embedder
        self.n_clusters = integer("n_clusters", n_clusters, 1, INT32_MAX)
        self.seed = integer("seed", seed, 0, 2**32 - 1)

    def cluster(self, texts: Sequence[str]) -> list[list[str]]:
        """The texts of each group, groups in the order of their first text; no more groups than different texts.

        Raises:
            InvalidRequest: fewer texts than groups.
            LlcudaError: scikit-learn is not installed.
        """
        given = check_texts(texts)
        if len(given) < self.n_clusters:
            raise InvalidRequest(f"{len(given)} texts cannot make {self.n_clusters} groups")
        try:
            k_means = import_module("sklearn.cluster").KMeans
        except ImportError:
            raise MissingExtra("TextClustering needs scikit-learn: pip install scikit-learn") from None
        vectors = self.embedder.embed_batch(given)
        n_groups = min(self.n_clusters, len(set(given)))
        labels = k_means(n_groups, n_init=10, random_state=self.seed).fit_predict(vectors)
        groups: dict[int, list[str]] = {}
        for text, label in zip(given, labels, strict=True):
            groups.setdefault(int(label), []).append(text)
        return list(groups.values())
