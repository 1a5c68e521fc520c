"""Sampling the rows of a batch: by a top-k prefilter, or by libllama on several CPU cores where that pays.

Each row has a chain of its own, and cffi lets go of the interpreter's lock during a call. With a large vocabulary
libllama takes a good part of a millisecond for a row: on a GPU, 32 of them in turn take longer than the decode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ...core.context import Context
from ...core.sampler import SamplerChain, sample_rows
from ...hardware.cpu import usable_cores
from .topk_prefilter import Job, Rows, TopKPrefilter, most_threads

T = TypeVar("T")

_LEAST_ROWS = 4
_LEAST_LOGITS = 400_000
_LEAST_CORES = 5
_MOST_THREADS = 8
# a core that sleeps longer than this takes long to wake up; a thread told that work will come wakes up as often,
# so many times at most
_NAP = 1e-4
_NAPS = 200
_ROUSE = object()


class RowPool:
    """Samples for one scheduler; its threads start with the first call that pays.

    Attributes:
        prefilter: samples such rows.
    """

    def __init__(self, context: Context, cores: int | None = None) -> None:
        cores = usable_cores() if cores is None else cores
        self._context = context
        self._threads = min(cores - 1, _MOST_THREADS) if cores >= _LEAST_CORES else 1
        self._least = max(_LEAST_ROWS, _LEAST_LOGITS // max(1, context.n_vocab))
        self.prefilter = TopKPrefilter(context)
        self._calls: list[SimpleQueue[Any]] = []  # one for each thread but the caller's

    def pays(self, n_rows: int) -> bool:
        """Whether so many rows are worth the hand-over to threads."""
        return n_rows >= self._least and self._threads > 1

    def sample(
        self, listed: Sequence[Job], plain: Sequence[tuple[SamplerChain, int]], logits: Rows | None
    ) -> list[int]:
        """The next token for each, those with a prefilter first; -1 where a row has no number to choose by.

        For a caller that holds the context's `exclusive()`, also for the threads: they are done when it returns.

        Args:
            listed: chains with a reach, and their rows of `logits`.
            plain: chains, and rows of the last batch, for llama_sampler_sample.
            logits: float32 (outputs, n_vocab), of the last decode.
        """
        tokens: list[int] = []
        if listed:
            if logits is None:
                tokens = [-1] * len(listed)
            elif (readers := self._readers(len(listed))) > 1:
                tokens = self.prefilter.sample(logits, listed, self._run, readers)
            else:
                tokens = self.prefilter.sample(logits, listed)
        return tokens + self._plain(plain) if plain else tokens

    def _plain(self, jobs: Sequence[tuple[SamplerChain, int]]) -> list[int]:
        if not self.pays(len(jobs)):
            return sample_rows(self._context, jobs)
        share = -(-len(jobs) // self._threads)
        parts = [jobs[at : at + share] for at in range(0, len(jobs), share)]
        with closing(self._run([partial(sample_rows, self._context, part) for part in parts])) as found:
            return [token for part in found for token in part]

    def _readers(self, n_listed: int) -> int:
        """How many threads read so many rows for the prefilter."""
        return min(self._threads, most_threads(n_listed))

    def rouse(self, n_plain: int, n_listed: int) -> None:
        """Tell the threads that so many rows come within milliseconds."""
        threads = max(self._threads if self.pays(n_plain) else 1, self._readers(n_listed))
        if threads > 1:
            self._start(threads)
            for calls in self._calls[: threads - 1]:
                calls.put(_ROUSE)

    def _run(self, calls: Sequence[Callable[[], T]]) -> Generator[T]:
        """The results of calls that may run side by side, in order: the first in this thread, the others in the pool.

        To be closed: after that no thread works on them.
        """
        self._start(min(len(calls), self._threads))
        found: list[tuple[Any, BaseException | None] | None] = [None] * len(calls)
        done: SimpleQueue[None] = SimpleQueue()
        for i in range(1, len(calls)):
            self._calls[(i - 1) % len(self._calls)].put((calls[i], i, found, done))
        try:
            yield calls[0]()
            for i in range(1, len(calls)):
                while (result := found[i]) is None:
                    done.get()
                value, error = result
                if error is not None:
                    raise error
                yield value
        finally:
            # also after Ctrl-C: no thread may touch the context from here
            while any(result is None for result in found[1:]):
                with suppress(Empty):
                    done.get(timeout=_NAP)

    def _start(self, threads: int) -> None:
        """Have so many threads, the caller's among them."""
        for i in range(len(self._calls), threads - 1):
            self._calls.append(SimpleQueue())
            name = f"llcuda_ffi-rows-{i}"
            threading.Thread(target=_work, args=(self._calls[i],), name=name, daemon=True).start()

    def close(self) -> None:
        """End the threads."""
        for calls in self._calls:
            calls.put(None)
        self._calls = []


def _work(calls: SimpleQueue[Any]) -> None:
    job = None
    while True:
        job = _soon(calls) if job is _ROUSE else calls.get()
        if job is None:
            return
        if job is _ROUSE:
            continue
        call, i, found, done = job
        try:
            found[i] = call(), None
        except BaseException as error:
            found[i] = None, error
        done.put(None)
        job = call = found = done = None  # hold nothing while waiting


def _soon(calls: SimpleQueue[Any]) -> Any:
    for _ in range(_NAPS):
        with suppress(Empty):
            return calls.get(timeout=_NAP)
    return calls.get()
