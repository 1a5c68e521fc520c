"""Sampling many rows at once on several CPU cores.

Each row has a chain of its own, and cffi lets go of the interpreter's lock during a call. With a large vocabulary a
row takes a good part of a millisecond: on a GPU, 32 of them one after another take longer than the decode.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from ..core.context import Context
from ..hardware.cpu import usable_cores

Job = tuple[Any, int]  # a chain's pointer, a row of the last batch

_LEAST_ROWS = 4
_LEAST_LOGITS = 400_000
_LEAST_CORES = 5
_MOST_THREADS = 8


class RowPool:
    """Threads that sample for one scheduler; they start with the first call that pays."""

    def __init__(self, context: Context, cores: int | None = None) -> None:
        cores = usable_cores() if cores is None else cores
        self._context, self._lib = context, context._lib
        self._threads = min(cores - 1, _MOST_THREADS) if cores >= _LEAST_CORES else 1
        self._rows = max(_LEAST_ROWS, _LEAST_LOGITS // max(1, context.n_vocab))
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._started = False

    def pays(self, n_rows: int) -> bool:
        """Whether so many rows are worth the hand-over."""
        return n_rows >= self._rows and self._threads > 1

    def sample(self, jobs: Sequence[Job]) -> list[int]:
        """The next token for each job, in order."""
        if not self._started:
            self._started = True
            for i in range(self._threads - 1):
                threading.Thread(
                    target=_work, args=(self._jobs, self._done), name=f"llcuda_ffi-rows-{i}", daemon=True
                ).start()
        context = self._context._resource.pointer
        sample = self._lib.llama_sampler_sample
        # the first reader waits for the device and sorts the outputs; after that reading changes nothing
        self._lib.llama_get_logits_ith(context, jobs[0][1])
        size = -(-len(jobs) // self._threads)
        parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        for i, part in enumerate(parts[1:], 1):
            self._jobs.put((i, sample, context, part))
        found: list[list[int]] = [[] for _ in parts]
        left = len(parts) - 1
        try:
            found[0] = [sample(chain, context, row) for chain, row in parts[0]]
        finally:
            # also after Ctrl-C: no thread may touch the context when this returns
            while left:
                i, tokens = self._done.get()
                found[i] = tokens
                left -= 1
        return [token for part in found for token in part]

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
        i, sample, context, part = job
        done.put((i, [sample(chain, context, row) for chain, row in part]))
        job = sample = context = part = None  # hold nothing while waiting
