"""The texts that wait for a batch, found by their length.

A batch is filled best-fit: the longest text that waits, then always the longest that still fits. Full batches matter
because libllama computes attention in squares of 64 tokens: 70 tokens cost as much as 128, and fewer than 64 take a
slower way. Against batches of neighbours in the order of length that is 9% more texts per second (bench/embeddings.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

_TILE = 64
_ANY = 1 << 62


class Job:
    """The texts of one call and their results.

    Attributes:
        results: a vector for each text, or a (tokens, width) array without pooling; None until computed.
        left: texts not computed yet.
    """

    def __init__(self, texts: Sequence[Tokens], batch_tokens: int, report: Callable[[int], object] | None) -> None:
        self.texts = texts
        self.batch_tokens = batch_tokens
        self.report = report
        self.results: list[Floats | None] = [None] * len(texts)
        self.left = len(texts)
        self.error: BaseException | None = None
        self._by_length: dict[int, deque[int]] = {}
        for i, text in enumerate(texts):
            self._by_length.setdefault(len(text), deque()).append(i)
        self._lengths = sorted(self._by_length)

    def take(self, room: int) -> int | None:
        """The longest text that waits and has no more than `room` tokens; it no longer waits. None if there is none."""
        at = bisect_right(self._lengths, room)
        if at == 0:
            return None
        same = self._by_length[self._lengths[at - 1]]
        found = same.popleft()
        if not same:
            del self._lengths[at - 1]
        return found

    @property
    def waits(self) -> bool:
        """Whether a text is left to take."""
        return bool(self._lengths)


class Waiting:
    """The jobs with texts that wait, oldest first."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: Job) -> None:
        """Its texts wait from now on."""
        self._jobs.append(job)

    def drop(self, job: Job) -> None:
        """Its texts no longer wait."""
        self._jobs = deque(other for other in self._jobs if other is not job)

    def clear(self) -> None:
        """Nothing waits."""
        self._jobs.clear()

    def take(self, most_tokens: int, most_texts: int) -> list[tuple[Job, int]]:
        """The next batch: the longest text of the oldest job, and what fits with it, older jobs first.

        Args:
            most_tokens: what the context can compute at once.
            most_texts: sequences of the context.
        """
        taken: list[tuple[Job, int]] = []
        used, limit = 0, _ANY
        for job in self._jobs:
            while len(taken) < most_texts:
                mine = not taken or job is taken[0][0]
                i = job.take((limit if mine else min(limit, job.batch_tokens)) - used)
                if i is None:
                    break
                used += len(job.texts[i])
                if not taken:
                    # a text longer than a batch pays for whole squares: others fill the last one
                    limit = min(most_tokens, max(job.batch_tokens, used + -used % _TILE))
                taken.append((job, i))
        self._jobs = deque(job for job in self._jobs if job.waits)
        return taken
