"""Sampling from the few tokens that a chain can choose.

A chain that begins with top-k needs the k highest logits of a row. libllama copies the whole row, 12
bytes a token, and searches the copy; with a vocabulary of 128,000 that takes longer than anything else outside the
model. Here numpy reads the row once: of the maxima of many columns the k-th highest is a lower bound, and only columns
that reach it are looked into. The chain then runs on what is left, in the row's order: it chooses what it would have
chosen from the whole row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import numpy.typing as npt

from ...core.candidates import Candidates
from ...core.context import Context
from ...core.sampler import SamplerChain
from ...core.vocab import Vocab
from ...sampling_params import SamplingParams

Rows = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Found = tuple[Ids, Ids, Rows]
Run = Callable[[Sequence[Callable[[], Found]]], Generator[Found]]

# a chain, its row among the outputs of the last batch, how many of the highest logits it needs
Job = tuple[SamplerChain, int, int]

_COLUMNS = 8192
_GROUPS = 512  # of columns; their maxima give the bound
_LEAST_VOCAB = 1 << 16  # below this libllama's own search is as fast
_MOST = _GROUPS // 2  # more candidates than this leave nothing to win
_LEAST_SHARE = 8  # rows that are worth another thread
_MOST_THREADS = 3  # the interpreter's lock and the memory leave nothing to more
# Most of a thread's time is one call that reads its rows, the rest short ones that want the interpreter's lock:
# with shares that grow so, the threads want it one after another.
_GROWTH = 1.5
_LOWEST = np.finfo(np.float32).min


def wide(n_vocab: int) -> bool:
    """Whether a vocabulary is large enough for a prefilter to pay."""
    return n_vocab >= _LEAST_VOCAB


def most_threads(n_rows: int) -> int:
    """How many threads so many rows are worth."""
    return max(1, min(_MOST_THREADS, n_rows // _LEAST_SHARE))


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


def _in_turn(calls: Sequence[Callable[[], Found]]) -> Generator[Found]:
    for call in calls:
        yield call()


class TopKPrefilter:
    """Samples rows of one context; its buffers are used again."""

    def __init__(self, context: Context) -> None:
        self._columns: Rows = np.empty((0, _COLUMNS), np.float32)
        self._candidates = Candidates(context.model.library)

    def sample(self, logits: Rows, jobs: Sequence[Job], run: Run = _in_turn, threads: int = 1) -> list[int]:
        """The token that each chain chooses and accepts, -1 where a row has no number to choose by.

        Args:
            logits: float32 (outputs, n_vocab), contiguous; libllama's own memory.
            run: calls functions in so many threads; their results in order.
        """
        rows = [row for _, row, _ in jobs]
        if len(self._columns) < len(rows):
            self._columns = np.empty((len(rows), _COLUMNS), np.float32)
        if len(jobs) == 1:
            ids, values = _highest_of(logits[rows[0]], self._columns[0], jobs[0][2])
            return self._choose(jobs, [len(ids)], ids, values)
        k = max(need for _, _, need in jobs)
        blocks = list(_blocks(rows, _shares(len(rows), threads)))
        calls = [partial(_highest, logits[rows[a] : rows[a] + b - a], self._columns[a:b], k) for a, b in blocks]
        tokens: list[int] = []
        with closing(run(calls)) as parts:
            for (a, b), (sizes, ids, values) in zip(blocks, parts, strict=True):
                tokens += self._choose(jobs[a:b], sizes.tolist(), ids, values)
        return tokens

    def fill(self, ids: Ids, logits: Rows) -> Candidates:
        """These tokens as candidates, for chains to choose from."""
        candidates, n = self._candidates, len(ids)
        if len(candidates.rows) < n:
            candidates.reserve(2 * n)
        candidates.rows["id"][:n] = ids
        candidates.rows["logit"][:n] = logits
        return candidates

    def _choose(self, jobs: Sequence[Job], sizes: Sequence[int], ids: Ids, logits: Rows) -> list[int]:
        """Run each chain on its part of the candidates."""
        candidates = self.fill(ids, logits)
        tokens = []
        start = 0
        for (chain, _, _), size in zip(jobs, sizes, strict=True):
            tokens.append(candidates.choose(chain, start, size) if size else -1)
            start += size
        return tokens


def _shares(n_rows: int, threads: int) -> set[int]:
    """Where the shares of the threads end."""
    parts = np.cumsum(_GROWTH ** np.arange(threads))
    return set(np.rint(n_rows * parts / parts[-1]).astype(int).tolist())


def _blocks(rows: Sequence[int], ends: Collection[int]) -> Iterator[tuple[int, int]]:
    """Rows of one share that follow each other: (start, end)."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end in ends or rows[end] != rows[end - 1] + 1:
            yield start, end
            start = end


def _highest(logits: Rows, columns: Rows, k: int) -> Found:
    """The tokens that can be among the k highest of each row, in the row's order.

    Args:
        columns: float32 (rows, _COLUMNS), written to.

    Returns:
        (rows,) how many each row has, then all their tokens and logits.
    """
    count, width = logits.shape
    full = width // _COLUMNS * _COLUMNS
    np.maximum.reduce(logits[:, :full].reshape(count, -1, _COLUMNS), axis=1, out=columns)
    if full < width:
        rest = columns[:, : width - full]
        np.maximum(rest, logits[:, full:], out=rest)
    groups = np.maximum.reduce(columns.reshape(count, -1, _GROUPS), axis=1)
    bound = np.maximum(np.partition(groups, _GROUPS - k, axis=1)[:, _GROUPS - k], _LOWEST)

    # every token of the columns that reach the bound, then those that reach it themselves
    column = np.flatnonzero(columns >= bound[:, None])
    row = column // _COLUMNS
    inside = column + row * (width - _COLUMNS) + np.arange(0, width, _COLUMNS)[:, None]
    reached = logits.reshape(-1).take(inside, mode="clip") >= bound.take(row)
    reached[-1] &= inside[-1] < (row + 1) * width
    # equal logits are decided by the order of the row
    place = np.sort(inside[reached])
    row = place // width
    return np.bincount(row, minlength=count), place - row * width, logits.reshape(-1).take(place)


def _highest_of(logits: Rows, columns: Rows, k: int) -> tuple[Ids, Rows]:
    """The same for one row, in half the calls: its tokens and their logits."""
    width = len(logits)
    full = width // _COLUMNS * _COLUMNS
    np.maximum.reduce(logits[:full].reshape(-1, _COLUMNS), axis=0, out=columns)
    if full < width:
        rest = columns[: width - full]
        np.maximum(rest, logits[full:], out=rest)
    groups = np.maximum.reduce(columns.reshape(-1, _GROUPS), axis=0)
    groups.partition(_GROUPS - k)
    bound = max(groups[_GROUPS - k], _LOWEST)
    inside = (columns >= bound).nonzero()[0] + np.arange(0, width, _COLUMNS)[:, None]
    reached = logits.take(inside, mode="clip") >= bound
    reached[-1] &= inside[-1] < width
    place = inside[reached]
    place.sort()
    return place, logits.take(place)
