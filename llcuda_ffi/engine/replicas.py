"""Lanes: schedulers with a thread each, for callers that must not block, and for several contexts of one model.

While one context's tokens are chosen on the CPU, the GPU computes for another: with many sequences that hides what
choosing costs. A request stays in the lane it came to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..errors import BackendFailure, ConcurrentUseError
from .driver import Driver
from .request import Request
from .scheduler import Scheduler

_SLACK = 0.25  # of a lane's slots


class Lanes:
    """Steps several schedulers, each in a thread of its own while it has work. Has the methods of Driver.

    Attributes:
        schedulers: one for each lane.
    """

    def __init__(self, drivers: Sequence[Driver]) -> None:
        self._drivers = drivers
        self.schedulers: Sequence[Scheduler] = [driver.scheduler for driver in drivers]
        self._threads = [_LaneThread(driver) for driver in drivers]

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._drivers[0].closed

    def check(self) -> None:
        """Refuse use after close and after a fork."""
        self._drivers[0].check()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return all(driver.idle for driver in self._drivers)

    @contextmanager
    def paused(self) -> Iterator[Sequence[Scheduler]]:
        """The schedulers, while nobody steps them."""
        with ExitStack() as stack:
            for driver in self._drivers:
                stack.enter_context(driver.paused())
            yield self.schedulers

    def submit(self, *requests: Request) -> None:
        """Queue requests."""
        for request in requests:
            request.lane = self._choose(request)
            self.schedulers[request.lane].submit(request)
        for lane in {request.lane for request in requests}:
            self._threads[lane].kick()

    def cancel(self, request: Request) -> None:
        """End a request as "cancelled" in the next step."""
        self.schedulers[request.lane].cancel(request)
        self._threads[request.lane].kick()

    def _choose(self, request: Request) -> int:
        """The least busy lane; one that is little busier where most of the prompt is kept there."""
        if len(self.schedulers) == 1:
            return 0
        if request.group is not None:
            return request.group.lane  # n completions share their prompt
        busy = [scheduler.busy for scheduler in self.schedulers]
        near = [lane for lane, share in enumerate(busy) if share <= min(busy) + _SLACK]

        def rank(lane: int) -> tuple[int, float]:
            shared = self.schedulers[lane].prefixes.shared(request)
            return shared if 2 * shared >= len(request.prompt) else 0, -busy[lane]

        return max(near, key=rank)

    def run(self, request: Request, ready: Callable[[], bool]) -> None:
        """Return once `ready()`.

        Args:
            request: its `notify` wakes this thread.
        """
        wake = request.wake
        if wake is None:
            wake = request.wake = threading.Event()
        while not ready():
            self.check()
            wake.wait(0.1)
            wake.clear()

    def stop(self) -> None:
        """End the threads, each after the step that is running. What is left of their work stays undone."""
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """End all requests. Raises ConcurrentUseError while there are any that nobody cancelled."""
        if self.closed:
            return
        if any(scheduler.wanted for scheduler in self.schedulers) and not all(t.stopped for t in self._threads):
            raise ConcurrentUseError("this Llama is generating in another thread: close it when that is done")
        self.stop()
        for driver in self._drivers:
            driver.close()


class _LaneThread:
    """Steps one scheduler while it has work."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._work = threading.Event()
        self.stopped = False
        self._thread = threading.Thread(target=self._run, name="llcuda_ffi-engine", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """There may be work."""
        self._work.set()

    def _run(self) -> None:
        scheduler = self._driver.scheduler
        while True:
            self._work.wait()
            self._work.clear()
            if self.stopped:
                return
            try:
                with self._driver._lead:
                    while not self.stopped and not scheduler.idle:
                        scheduler.step()
            except BaseException as error:
                reason = str(error)
                scheduler.fail_all(lambda: BackendFailure(f"the engine stopped: {reason}"))  # noqa: B023

    def stop(self) -> None:
        """Stop after the step that is running."""
        self.stopped = True
        self._work.set()

    def join(self) -> None:
        """Wait for that; not from the thread itself, where the garbage collector may call it."""
        if threading.current_thread() is not self._thread:
            self._thread.join()
