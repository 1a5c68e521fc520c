"""sentence-transformers' util: similarities and search, over arrays (or torch tensors, which give tensors)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...embedder import Embedder
from ...embedding.vectors import to_tensor


def cos_sim(a: Any, b: Any) -> Any:
    """The cosine of every row of `a` with every row of `b`: (n, m)."""
    return _like(Embedder.similarity(_array(a), _array(b)), a, b)


pytorch_cos_sim = cos_sim


def dot_score(a: Any, b: Any) -> Any:
    """The dot product of every row of `a` with every row of `b`: (n, m)."""
    return _like(np.atleast_2d(_array(a)) @ np.atleast_2d(_array(b)).T, a, b)


def pairwise_cos_sim(a: Any, b: Any) -> Any:
    """The cosine of each row of `a` with the same row of `b`: (n,)."""
    left, right = (np.atleast_2d(_array(one)) for one in (a, b))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return _like((left * right).sum(axis=1) / np.where(lengths == 0, 1, lengths), a, b)


def normalize_embeddings(embeddings: Any) -> Any:
    """Rows at length 1."""
    rows = np.atleast_2d(_array(embeddings))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return _like(rows / np.where(lengths == 0, 1, lengths), embeddings)


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500_000,
    top_k: int = 10,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[dict[str, Any]]]:
    """For each query the best rows of a corpus, as {"corpus_id", "score"}, best first."""
    queries, corpus = np.atleast_2d(_array(query_embeddings)), np.atleast_2d(_array(corpus_embeddings))
    found: list[list[dict[str, Any]]] = []
    for start in range(0, len(queries), query_chunk_size):
        scores = _array(score_function(queries[start : start + query_chunk_size], corpus))
        for row in scores:
            best = np.argsort(-row, kind="stable")[:top_k]
            found.append([{"corpus_id": int(i), "score": float(row[i])} for i in best])
    return found


def _array(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    elif isinstance(value, list) and value and hasattr(value[0], "detach"):
        value = [row.detach().cpu().numpy() for row in value]
    return np.asarray(value, np.float32)


def _like(result: Any, *given: Any) -> Any:
    """A tensor where tensors were given."""
    return to_tensor(result) if any(hasattr(value, "detach") for value in given) else result
