"""Every request of a scheduler that is not over: those that wait, and those in a slot."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

from .request import Request


class RequestQueue:
    """Owns the requests. Any thread may `submit` and `cancel`; the rest is the scheduler's.

    A request is in the inbox, or it is one of the live ones until it is `remove`d. The heap and the slots only point
    to live requests: after a step that was interrupted, `rebuild` makes them anew, so that none can be lost.
    """

    def __init__(self) -> None:
        self._inbox: deque[Request] = deque()
        self._live: dict[Request, None] = {}
        self._heap: list[tuple[int, int, Request]] = []  # by priority, then in order of arrival
        self._deadlines: list[tuple[float, int, Request]] = []
        self._cancelled: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        """Add a request."""
        self._inbox.append(request)

    def cancel(self, request: Request) -> None:
        """Have `overdue` name a request."""
        request.place.cancelled = True
        self._cancelled.append(request)

    def __len__(self) -> int:
        """How many are not over."""
        return len(self._inbox) + len(self._live)

    def collect(self) -> None:
        """Take in what was submitted."""
        inbox = self._inbox
        while inbox:
            request = inbox[0]
            if request not in self._live and not request.done:
                self._live[request] = None
                self.push(request)
                if request.place.deadline is not None:
                    heapq.heappush(self._deadlines, (request.place.deadline, request.place.number, request))
                if request.place.cancelled:
                    self._cancelled.append(request)
            inbox.popleft()

    def push(self, request: Request) -> None:
        """Have a live request wait, at the place of its priority and arrival."""
        heapq.heappush(self._heap, (-request.params.priority, request.place.number, request))

    @property
    def ready(self) -> bool:
        """Whether `pop` has one. What another thread submits meanwhile waits for the next `collect`."""
        heap = self._heap
        while heap and heap[0][2].done:
            heapq.heappop(heap)
        return bool(heap)

    def pop(self) -> Request:
        """The next one that waits; to be called when `ready`."""
        return heapq.heappop(self._heap)[2]

    def overdue(self) -> Iterable[Request]:
        """The live requests that were cancelled or are too late; each must be ended before the next is asked for."""
        return self._overdue() if self._cancelled or self._deadlines else ()

    def _overdue(self) -> Iterator[Request]:
        while self._cancelled:
            request = self._cancelled[0]
            if request in self._live and not request.done:
                yield request
            self._cancelled.popleft()
        deadlines = self._deadlines
        if deadlines:
            now = perf_counter()
            while deadlines and (deadlines[0][2].done or deadlines[0][0] <= now):
                request = deadlines[0][2]
                if request in self._live and not request.done:
                    yield request
                heapq.heappop(deadlines)

    def remove(self, request: Request) -> None:
        """A request is over."""
        self._live.pop(request, None)

    def rebuild(self, resume: Callable[[Request], bool]) -> None:
        """After an interrupted step: every live request waits again.

        Args:
            resume: makes a request fit for that; returns False for one that is over.
        """
        for request in list(self._live):
            if not resume(request):
                self.remove(request)
        self._heap = [(-request.params.priority, request.place.number, request) for request in self._live]
        heapq.heapify(self._heap)
        self._deadlines = [(r.place.deadline, r.place.number, r) for r in self._live if r.place.deadline is not None]
        heapq.heapify(self._deadlines)

    def __iter__(self) -> Iterator[Request]:
        """All that are not over, in no order."""
        return iter([*self._live, *self._inbox.copy()])
