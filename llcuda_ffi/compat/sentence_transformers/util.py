"""sentence-transformers' util: similarities and search, over arrays (or torch tensors, which give tensors)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...embedder import Embedder
from ...embedding.vectors import as_rows, to_tensor


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


def pairwise_dot_score(a: Any, b: Any) -> Any:
    """The dot product of each row of `a` with the same row of `b`: (n,)."""
    return _like((np.atleast_2d(_array(a)) * np.atleast_2d(_array(b))).sum(axis=1), a, b)


def euclidean_sim(a: Any, b: Any) -> Any:
    """Minus the distance of every row of `a` from every row of `b`: (n, m)."""
    return _like(-np.linalg.norm(_differences(a, b), axis=2), a, b)


def manhattan_sim(a: Any, b: Any) -> Any:
    """Minus the sum of the differences of every row of `a` from every row of `b`: (n, m)."""
    return _like(-np.abs(_differences(a, b)).sum(axis=2), a, b)


def pairwise_euclidean_sim(a: Any, b: Any) -> Any:
    """Minus the distance of each row of `a` from the same row of `b`: (n,)."""
    return _like(-np.linalg.norm(np.atleast_2d(_array(a)) - np.atleast_2d(_array(b)), axis=1), a, b)


def pairwise_manhattan_sim(a: Any, b: Any) -> Any:
    """Minus the sum of the differences of each row of `a` from the same row of `b`: (n,)."""
    return _like(-np.abs(np.atleast_2d(_array(a)) - np.atleast_2d(_array(b))).sum(axis=1), a, b)


def _differences(a: Any, b: Any) -> Any:
    return np.atleast_2d(_array(a))[:, None] - np.atleast_2d(_array(b))[None]


def truncate_embeddings(embeddings: Any, truncate_dim: int | None) -> Any:
    """The first numbers of each row."""
    return embeddings[..., :truncate_dim]


def paraphrase_mining(
    model: Any,
    sentences: Sequence[str],
    show_progress_bar: bool = False,
    batch_size: int = 32,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Callable[[Any, Any], Any] = cos_sim,
    **options: Any,
) -> list[list[Any]]:
    """The pairs of texts that are most alike, as [score, i, j], best first.

    Args:
        **options: of `model.encode`.
    """
    rows = model.encode(sentences, show_progress_bar=show_progress_bar, batch_size=batch_size, **options)
    return paraphrase_mining_embeddings(rows, query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function)


def paraphrase_mining_embeddings(
    embeddings: Any,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[Any]]:
    """The pairs of rows that are most alike, as [score, i, j], best first, `max_pairs` of them; of each row its `top_k`
    nearest are looked at."""
    hits = semantic_search(
        embeddings, embeddings, query_chunk_size, corpus_chunk_size, top_k=top_k + 1, score_function=score_function
    )
    pairs = {tuple(sorted((i, hit["corpus_id"]))): hit["score"] for i, row in enumerate(hits) for hit in row}
    found = sorted(([score, *pair] for pair, score in pairs.items() if pair[0] != pair[1]), key=lambda p: -p[0])
    return found[:max_pairs]


def community_detection(
    embeddings: Any, threshold: float = 0.75, min_community_size: int = 10, **_options: Any
) -> list[list[int]]:
    """Groups of rows whose cosine with the group's first is at least `threshold`, largest first, none twice."""
    scores = _array(cos_sim(embeddings, embeddings))
    near = [np.flatnonzero(row >= threshold) for row in scores]
    groups, taken = [], set()
    for i in sorted(range(len(near)), key=lambda i: -len(near[i])):
        group = [int(j) for j in near[i][np.argsort(-scores[i, near[i]])] if int(j) not in taken]
        if i not in taken and len(group) >= min_community_size:
            groups.append(group)
            taken.update(group)
    return sorted(groups, key=len, reverse=True)


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
    return as_rows(value)


def _like(result: Any, *given: Any) -> Any:
    """A tensor where tensors were given."""
    return to_tensor(result) if any(hasattr(value, "detach") for value in given) else result
