"""Sampling the rows of a batch, on several CPU cores where that pays.

Each row has a chain of its own, and cffi and numpy let go of the interpreter's lock in their calls. With a large
vocabulary a row takes a good part of a millisecond: on a GPU, 32 of them one after another take longer than the decode.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.context import Context
from ..hardware.cpu import usable_cores
from .shortlist import Shortlist, wide

# a chain's pointer, a row of the last batch, the reach of the chain (shortlist.py)
Job = tuple[Any, int, int]

_LEAST_ROWS = 4
_LEAST_LOGITS = 400_000
_LEAST_CORES = 5
_MOST_THREADS = 8


class RowPool:
    """Samples for one scheduler; its threads start with the first call that pays.

    Attributes:
        wide: whether rows gain from a shortlist, also without threads.
    """

    def __init__(self, context: Context, cores: int | None = None) -> None:
        cores = usable_cores() if cores is None else cores
        self._context, self._lib, self._ffi = context, context._lib, context._ffi
        self._threads = min(cores - 1, _MOST_THREADS) if cores >= _LEAST_CORES else 1
        self._least = max(_LEAST_ROWS, _LEAST_LOGITS // max(1, context.n_vocab))
        self.wide = wide(context.n_vocab)
        self._short = [Shortlist(context) for _ in range(self._threads)]
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._started = False

    def pays(self, n_rows: int) -> bool:
        """Whether so many rows are worth the hand-over to threads."""
        return n_rows >= self._least and self._threads > 1

    def sample(self, jobs: Sequence[Job], output: npt.NDArray[np.int8]) -> list[int]:
        """The next token for each job, in order; -1 where `llama_sampler_sample` has to say.

        Args:
            output: the batch's output flags, int8 (n_tokens,).
        """
        # the first reader waits for the device and sorts the outputs; after that reading changes nothing
        first = self._lib.llama_get_logits(self._context._resource.pointer)
        if not first:
            return [-1] * len(jobs)
        places = np.cumsum(output, dtype=np.int64)
        size = 4 * int(places[-1]) * self._context.n_vocab
        logits = np.frombuffer(self._ffi.buffer(first, size), np.float32).reshape(-1, self._context.n_vocab)
        if not self.pays(len(jobs)):
            return self._part(self._short[0], logits, places, jobs)
        self._start()
        share = -(-len(jobs) // self._threads)
        parts = [jobs[start : start + share] for start in range(0, len(jobs), share)]
        for i, part in enumerate(parts[1:], 1):
            self._jobs.put((i, self._part, self._short[i], logits, places, part))
        found: list[list[int]] = [[] for _ in parts]
        failed: list[BaseException] = []
        left = len(parts) - 1
        try:
            found[0] = self._part(self._short[0], logits, places, parts[0])
        finally:
            # also after Ctrl-C: no thread may touch the context when this returns
            while left:
                i, tokens = self._done.get()
                if isinstance(tokens, BaseException):
                    failed.append(tokens)
                else:
                    found[i] = tokens
                left -= 1
        if failed:
            raise failed[0]
        return [token for part in found for token in part]

    def _part(
        self, short: Shortlist, logits: npt.NDArray[np.float32], places: npt.NDArray[np.int64], jobs: Sequence[Job]
    ) -> list[int]:
        """What one thread samples."""
        listed = [(chain, int(places[row]) - 1, need) for chain, row, need in jobs if need]
        tokens = iter(short.sample(logits, listed) if listed else ())
        context, sample = self._context._resource.pointer, self._lib.llama_sampler_sample
        return [next(tokens) if need else sample(chain, context, row) for chain, row, need in jobs]

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for i in range(self._threads - 1):
                threading.Thread(
                    target=_work, args=(self._jobs, self._done), name=f"llcuda_ffi-rows-{i}", daemon=True
                ).start()

    def close(self) -> None:
        """End the threads."""
        if self._started:
            for _ in range(self._threads - 1):
                self._jobs.put(None)
            self._started = False


def _work(jobs: SimpleQueue[Any], done: SimpleQueue[Any]) -> None:
    while True:
        job = jobs.get()
        if job is None:
            return
        i, call, *arguments = job
        try:
            done.put((i, call(*arguments)))
        except BaseException as error:
            done.put((i, error))
        job = call = arguments = None  # hold nothing while waiting
