"""Requests that wait for a slot: by priority, then in order of arrival."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from .request import Request


class Waiting:
    """A queue that any thread may add to; the rest is the scheduler's."""

    def __init__(self) -> None:
        self._inbox: deque[Request] = deque()
        self._heap: list[tuple[int, int, Request]] = []

    def add(self, request: Request) -> None:
        """Add a request, from any thread."""
        self._inbox.append(request)

    def push(self, request: Request) -> None:
        """Add a request, or put one back at its old place."""
        heapq.heappush(self._heap, (-request.params.priority, request.number, request))

    def pop(self) -> Request:
        """Take the next one."""
        return heapq.heappop(self._heap)[2]

    def collect(self) -> bool:
        """Bring in what was added; returns whether anybody waits."""
        while self._inbox:
            self.push(self._inbox.popleft())
        return bool(self._heap)

    @property
    def ready(self) -> bool:
        """Whether `pop` has one. What another thread adds meanwhile waits for the next `collect`."""
        return bool(self._heap)

    def sweep(self, now: float) -> list[Request]:
        """Take out what was cancelled or is too late."""
        over = [item[2] for item in self._heap if item[2].over(now)]
        if over:
            self._heap = [item for item in self._heap if item[2] not in over]
            heapq.heapify(self._heap)
        return over

    def __len__(self) -> int:
        return len(self._inbox) + len(self._heap)

    def __iter__(self) -> Iterator[Request]:
        """All of them, in no order."""
        return iter([*(item[2] for item in self._heap), *self._inbox.copy()])
