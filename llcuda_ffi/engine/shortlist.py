"""Sampling from the few tokens that a chain can choose.

A chain that begins with top-k, or is greedy, needs the k highest logits of a row. libllama copies the whole row, 12
bytes a token, and searches the copy; with a vocabulary of 128,000 that takes longer than anything else outside the
model. Here numpy reads the row once: of the maxima of many columns the k-th highest is a lower bound, and only columns
that reach it are looked into. The chain then runs on what is left, in the row's order: it chooses what it would have
chosen from the whole row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.context import Context
from ..core.sampler import CANDIDATE
from ..core.vocab import Vocab
from ..sampling_params import SamplingParams

# a chain's pointer, its row among the outputs of the last batch, how many of the highest logits it needs
Job = tuple[Any, int, int]

_COLUMNS = 4096
_LEAST_VOCAB = 16 * _COLUMNS  # below this libllama's own search is as fast
_MOST = _COLUMNS // 8  # more candidates than this leave nothing to win
_LOWEST = np.finfo(np.float32).min


def wide(n_vocab: int) -> bool:
    """Whether a vocabulary is large enough for a shortlist to pay."""
    return n_vocab >= _LEAST_VOCAB


def reach(names: Sequence[str], params: SamplingParams, vocab: Vocab) -> int:
    """How many of a row's highest logits decide what a chain of these samplers chooses; 0 where all may."""
    if not wide(vocab.n_tokens) or any(bias > 0 for bias in params.logit_bias.values()):
        return 0
    first = names[1] if names[0] == "logit_bias" else names[0]
    k = {"greedy": 1, "top_k": params.top_k}.get(first, 0)
    lowered = len(params.logit_bias) + (len(vocab.eog_tokens) if params.ignore_eos else 0)
    return k + lowered if 0 < k <= _MOST - lowered else 0


class Shortlist:
    """Samples rows in one thread; its buffers are used again."""

    def __init__(self, context: Context) -> None:
        self._lib, self._ffi = context._lib, context._ffi
        self._width = context.n_vocab
        self._lanes = -(-self._width // _COLUMNS)
        self._steps = np.arange(self._lanes, dtype=np.int64) * _COLUMNS
        self._array = self._ffi.new("llama_token_data_array *")
        self._maxima: npt.NDArray[np.float32] = np.empty((0, _COLUMNS), np.float32)
        self._candidates: npt.NDArray[Any] = np.empty(0, CANDIDATE)
        self._first: Any = None

    def sample(self, logits: npt.NDArray[np.float32], jobs: Sequence[Job]) -> list[int]:
        """The token that each chain chooses and accepts, -1 where a row has no number to choose by.

        Args:
            logits: float32 (outputs, n_vocab), contiguous; libllama's own memory.
        """
        count, width = len(jobs), self._width
        rows = np.array([row for _, row, _ in jobs])
        maxima = self._columns(logits, [row for _, row, _ in jobs])
        k = max(need for _, _, need in jobs)
        least = np.maximum(np.partition(maxima, _COLUMNS - k, axis=1)[:, _COLUMNS - k], _LOWEST)
        job, column = np.nonzero(maxima >= least[:, None])
        ids = column[:, None] + self._steps
        flat = logits.reshape(-1)
        found = flat.take(ids + (rows * width)[job][:, None], mode="clip") >= least[job][:, None]
        found &= ids < width
        # in the order of the row, which decides between equal logits
        at = np.sort((ids + (np.arange(count) * width)[job][:, None])[found])
        job = at // width
        token = at - job * width
        ends = np.searchsorted(job, np.arange(count + 1)).tolist()
        candidates = self._room(len(at))
        candidates["id"][: len(at)] = token
        candidates["logit"][: len(at)] = flat[token + (rows * width)[job]]
        array, first = self._array, self._first
        apply, accept = self._lib.llama_sampler_apply, self._lib.llama_sampler_accept
        tokens = []
        for (chain, _, _), start, end in zip(jobs, ends[:-1], ends[1:], strict=True):
            if start == end:
                tokens.append(-1)
                continue
            array.data, array.size, array.selected, array.sorted = first + start, end - start, -1, False
            apply(chain, array)
            chosen = array.selected
            if not 0 <= chosen < array.size:
                tokens.append(-1)
                continue
            tokens.append(array.data[chosen].id)
            accept(chain, tokens[-1])
        return tokens

    def _columns(self, logits: npt.NDArray[np.float32], rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """The highest logit of each column: tokens that lie `_COLUMNS` apart."""
        if len(self._maxima) < len(rows):
            self._maxima = np.empty((len(rows), _COLUMNS), np.float32)
        full = self._width // _COLUMNS * _COLUMNS
        for row, out in zip(rows, self._maxima, strict=False):
            np.maximum.reduce(logits[row, :full].reshape(-1, _COLUMNS), axis=0, out=out)
            if full < self._width:
                rest = out[: self._width - full]
                np.maximum(rest, logits[row, full:], out=rest)
        return self._maxima[: len(rows)]

    def _room(self, n: int) -> npt.NDArray[Any]:
        if len(self._candidates) < n:
            self._candidates = np.empty(2 * n, CANDIDATE)
            self._first = self._ffi.cast("llama_token_data *", self._ffi.from_buffer(self._candidates))
        return self._candidates
