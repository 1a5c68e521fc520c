"""Log probabilities from rows of logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...core.vocab import Vocab
from ..results import TokenLogprob


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The natural log probabilities of a row of logits."""
    shifted = logits - logits.max()
    normal: npt.NDArray[np.float32] = shifted - np.float32(np.log(np.exp(shifted, dtype=np.float64).sum()))
    return normal


def token_logprob(vocab: Vocab, token: int, row: npt.NDArray[np.float32], k: int) -> TokenLogprob:
    """A token's entry.

    Args:
        row: of log probabilities.
        k: so many likeliest are given with it.
    """
    top: tuple[tuple[int, float], ...] = ()
    if k:
        k = min(k, len(row))
        best = np.argpartition(row, len(row) - k)[len(row) - k :]
        best = best[np.argsort(-row[best], kind="stable")]
        top = tuple((int(t), float(row[t])) for t in best)
    written = tuple(vocab.piece(t, special=True) for t, _ in top)
    return TokenLogprob(token, vocab.piece(token, special=True), float(row[token]), top, written)
