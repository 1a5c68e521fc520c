"""Sampling the rows of a batch: by a shortlist, or by libllama on several CPU cores where that pays.

Each row has a chain of its own, and cffi lets go of the interpreter's lock during a call. With a large vocabulary
libllama takes a good part of a millisecond for a row: on a GPU, 32 of them in turn take longer than the decode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.context import Context
from ..hardware.cpu import usable_cores
from .shortlist import Shortlist, wide

# a chain's pointer, a row of the last batch, and the chain's reach (shortlist.py); 0 is for llama_sampler_sample
Job = tuple[Any, int, int]

_LEAST_ROWS = 4
_LEAST_LOGITS = 400_000
_LEAST_CORES = 5
_MOST_THREADS = 8


class RowPool:
    """Samples for one scheduler; its threads start with the first call that pays.

    Attributes:
        wide: whether rows gain from a shortlist, also without threads.
        shortlist: samples such rows.
    """

    def __init__(self, context: Context, cores: int | None = None) -> None:
        cores = usable_cores() if cores is None else cores
        self._context, self._lib, self._ffi = context, context._lib, context._ffi
        self._threads = min(cores - 1, _MOST_THREADS) if cores >= _LEAST_CORES else 1
        self._least = max(_LEAST_ROWS, _LEAST_LOGITS // max(1, context.n_vocab))
        self.wide = wide(context.n_vocab)
        self.shortlist = Shortlist(context)
        self._calls: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._started = False

    def pays(self, n_rows: int) -> bool:
        """Whether so many rows are worth the hand-over to threads."""
        return n_rows >= self._least and self._threads > 1

    def sample(self, jobs: Sequence[Job], output: npt.NDArray[np.int8]) -> list[int]:
        """The next token for each job, in order; -1 where a row has no number to choose by.

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
        listed = [(chain, int(places[row]) - 1, need) for chain, row, need in jobs if need]
        plain = [(chain, row) for chain, row, need in jobs if not need]
        from_list = iter(self.shortlist.sample(logits, listed) if listed else ())
        from_rows = iter(self._plain(plain) if plain else ())
        return [next(from_list if need else from_rows) for _, _, need in jobs]

    def _plain(self, jobs: Sequence[tuple[Any, int]]) -> list[int]:
        context, sample = self._context._resource.pointer, self._lib.llama_sampler_sample
        share = -(-len(jobs) // (self._threads if self.pays(len(jobs)) else 1))
        parts = [jobs[at : at + share] for at in range(0, len(jobs), share)]
        found = self._run([partial(_each, sample, context, part) for part in parts])
        return [token for part in found for token in part]

    def _run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """The results of calls that may run side by side: the first in this thread, the others in the pool."""
        if len(calls) > 1 and not self._started:
            self._start()
        for i, call in enumerate(calls[1:], 1):
            self._calls.put((i, call))
        found: list[Any] = [None] * len(calls)
        failed: list[BaseException] = []
        left = len(calls) - 1
        try:
            found[0] = calls[0]()
        finally:
            # also after Ctrl-C: no thread may touch the context when this returns
            while left:
                i, found[i], error = self._done.get()
                failed += error
                left -= 1
        if failed:
            raise failed[0]
        return found

    def _start(self) -> None:
        self._started = True
        for i in range(self._threads - 1):
            name = f"llcuda_ffi-rows-{i}"
            threading.Thread(target=_work, args=(self._calls, self._done), name=name, daemon=True).start()

    def close(self) -> None:
        """End the threads."""
        if self._started:
            for _ in range(self._threads - 1):
                self._calls.put(None)
            self._started = False


def _each(sample: Any, context: Any, jobs: Sequence[tuple[Any, int]]) -> list[int]:
    return [sample(chain, context, row) for chain, row in jobs]


def _work(calls: SimpleQueue[Any], done: SimpleQueue[Any]) -> None:
    while True:
        job = calls.get()
        if job is None:
            return
        i, call = job
        try:
            done.put((i, call(), []))
        except BaseException as error:
            done.put((i, None, [error]))
        job = call = None  # hold nothing while waiting
