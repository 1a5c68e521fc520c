"""Sampling from the few tokens that a chain can choose.

A chain that begins with top-k needs the k highest logits of a row. libllama copies the whole row, 12
bytes a token, and searches the copy; with a vocabulary of 128,000 that takes longer than anything else outside the
model. Here numpy reads the row once: of the maxima of many columns the k-th highest is a lower bound, and only columns
that reach it are looked into. The chain then runs on what is left, in the row's order: it chooses what it would have
chosen from the whole row. In one thread: on the machine measured, several read the rows no faster than one.
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

Rows = npt.NDArray[np.float32]

# a chain's pointer, its row among the outputs of the last batch, how many of the highest logits it needs
Job = tuple[Any, int, int]

_COLUMNS = 8192
_GROUPS = 512  # of columns; their maxima give the bound
_LEAST_VOCAB = 1 << 16  # below this libllama's own search is as fast
_MOST = _GROUPS // 2  # more candidates than this leave nothing to win
_LOWEST = np.finfo(np.float32).min


def wide(n_vocab: int) -> bool:
    """Whether a vocabulary is large enough for a shortlist to pay."""
    return n_vocab >= _LEAST_VOCAB


def reach(names: Sequence[str], params: SamplingParams, vocab: Vocab) -> int:
    """How many of a row's highest logits decide what a chain of these samplers chooses; 0 where all may."""
    first = names[1] if names[0] == "logit_bias" else names[0]
    if first != "top_k" or not wide(vocab.n_tokens) or any(bias > 0 for bias in params.logit_bias.values()):
        return 0
    needed = params.top_k + len(params.logit_bias) + (len(vocab.eog_tokens) if params.ignore_eos else 0)
    return needed if needed <= _MOST else 0


def lowered_by(names: Sequence[str], params: SamplingParams, vocab: Vocab) -> frozenset[int] | None:
    """For a greedy chain without state: the tokens that its biases lower. None for other chains.

    libllama copies the whole row; numpy finds the same token without.
    """
    if list(names) not in (["greedy"], ["logit_bias", "greedy"]) or any(b > 0 for b in params.logit_bias.values()):
        return None
    return frozenset([*params.logit_bias, *(vocab.eog_tokens if params.ignore_eos else ())])


class Shortlist:
    """Samples rows of one context; its buffers are used again."""

    def __init__(self, context: Context) -> None:
        self._lib, self._ffi = context._lib, context._ffi
        self._width = context.n_vocab
        self._steps = np.arange(-(-self._width // _COLUMNS), dtype=np.int64) * _COLUMNS
        self._array = self._ffi.new("llama_token_data_array *")
        self._maxima: Rows = np.empty((0, _COLUMNS), np.float32)
        self._candidates: npt.NDArray[Any] = np.empty(0, CANDIDATE)
        self._first: Any = None

    def sample(self, logits: Rows, jobs: Sequence[Job]) -> list[int]:
        """The token that each chain chooses and accepts, -1 where a row has no number to choose by.

        Args:
            logits: float32 (outputs, n_vocab), contiguous; libllama's own memory.
        """
        count, width = len(jobs), self._width
        places = [row for _, row, _ in jobs]
        if len(self._maxima) < count:
            self._maxima = np.empty((count, _COLUMNS), np.float32)
        maxima = self._maxima[:count]
        _read(logits, places, maxima)
        groups = np.maximum.reduce(maxima.reshape(count, -1, _GROUPS), axis=1)
        k = max(need for _, _, need in jobs)
        least = np.maximum(np.partition(groups, _GROUPS - k, axis=1)[:, _GROUPS - k], _LOWEST)

        # every token of the columns that reach the bound, then those that reach it themselves
        places_at = np.array(places) * width
        column = np.flatnonzero(maxima >= least[:, None])
        job = column // _COLUMNS
        ids = (column - job * _COLUMNS)[:, None] + self._steps
        flat = logits.reshape(-1)
        found = flat.take(ids + places_at[job][:, None], mode="clip") >= least[job][:, None]
        found &= ids < width
        # in the order of the row, which decides between equal logits
        at = np.sort((ids + (job * width)[:, None])[found])
        job = at // width
        token = at - job * width
        candidates = self._room(len(at))
        candidates["id"][: len(at)] = token
        candidates["logit"][: len(at)] = flat.take(token + places_at[job])
        return self._choose(jobs, np.searchsorted(job, np.arange(count + 1)).tolist())

    def _choose(self, jobs: Sequence[Job], ends: Sequence[int]) -> list[int]:
        """Run each chain on its part of the candidates."""
        array, first = self._array, self._first
        apply, accept = self._lib.llama_sampler_apply, self._lib.llama_sampler_accept
        tokens = []
        start = 0
        for (chain, _, _), end in zip(jobs, ends[1:], strict=True):
            token = -1
            if start < end:
                array.data, array.size, array.selected, array.sorted = first + start, end - start, -1, False
                apply(chain, array)
                if 0 <= array.selected < array.size:
                    token = array.data[array.selected].id
                    accept(chain, token)
            tokens.append(token)
            start = end
        return tokens

    def _room(self, n: int) -> npt.NDArray[Any]:
        if len(self._candidates) < n:
            self._candidates = np.empty(2 * n, CANDIDATE)
            self._first = self._ffi.cast("llama_token_data *", self._ffi.from_buffer(self._candidates))
        return self._candidates


def _read(logits: Rows, rows: Sequence[int], maxima: Rows) -> None:
    """The highest logit of each column, the tokens that lie `_COLUMNS` apart, of some rows."""
    width = logits.shape[1]
    full = width // _COLUMNS * _COLUMNS
    for row, out in zip(rows, maxima, strict=True):
        np.maximum.reduce(logits[row, :full].reshape(-1, _COLUMNS), axis=0, out=out)
        if full < width:
            rest = out[: width - full]
            np.maximum(rest, logits[row, full:], out=rest)
