"""llama-cpp-python's prompt lookup decoding, by its module's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.intc]


class LlamaDraftModel:
    """What drafts tokens."""


@dataclass
class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Drafts what followed the last tokens where they stood before (here `draft="ngram"`).

    Attributes:
        max_ngram_size: taken, and without effect: three tokens are looked up.
        num_pred_tokens: tokens drafted at a time.
    """

    max_ngram_size: int = 2
    num_pred_tokens: int = 10

    @staticmethod
    def find_candidate_pred_tokens(input_ids: Tokens, max_ngram_size: int, num_pred_tokens: int) -> Tokens:
        """What followed the last tokens where they stood first: of the longest run of them that stood before."""
        ids = np.asarray(input_ids)
        for size in range(min(max_ngram_size, len(ids) - 1), 0, -1):
            rows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)  # something follows each of them
            places = np.flatnonzero((rows == ids[-size:]).all(axis=1))
            if len(places):
                start = int(places[0]) + size
                return ids[start : start + num_pred_tokens]
        return np.array([], np.intc)

    def __call__(self, input_ids: Tokens, /, **_: Any) -> Tokens:
        """As find_candidate_pred_tokens, with its settings."""
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)
