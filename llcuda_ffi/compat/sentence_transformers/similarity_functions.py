"""sentence-transformers' choice of a similarity."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from . import util


class SimilarityFunction(Enum):
    """How alike two vectors are."""

    COSINE = "cosine"
    DOT_PRODUCT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"

    @staticmethod
    def to_similarity_fn(kind: str | SimilarityFunction) -> Callable[[Any, Any], Any]:
        """The function for all rows with all rows."""
        name = SimilarityFunction(kind).value
        return {
            "cosine": util.cos_sim,
            "dot": util.dot_score,
            "euclidean": util.euclidean_sim,
            "manhattan": util.manhattan_sim,
        }[name]

    @staticmethod
    def to_similarity_pairwise_fn(kind: str | SimilarityFunction) -> Callable[[Any, Any], Any]:
        """The function for each row with the same row."""
        name = SimilarityFunction(kind).value
        return {
            "cosine": util.pairwise_cos_sim,
            "dot": util.pairwise_dot_score,
            "euclidean": util.pairwise_euclidean_sim,
            "manhattan": util.pairwise_manhattan_sim,
        }[name]

    @staticmethod
    def possible_values() -> list[str]:
        """Their names."""
        return [kind.value for kind in SimilarityFunction]
