"""Who calls `Scheduler.step()`.

`Driver` has no thread of its own: a thread that waits for a request leads, stepping for everybody, until its own
request has something; then another waiting thread takes over. A single caller pays one uncontended lock.
`EngineThread` is for callers that must not block: one thread that steps while there is work.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import BackendFailure, ClosedError, ConcurrentUseError
from .request import Request
from .scheduler import Scheduler


class Driver:
    """Steps the scheduler in the threads of its callers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._lead = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._pid = os.getpid()
        self.closed = False

    def check(self) -> None:
        """Refuse use after close and after a fork."""
        if self.closed:
            raise ClosedError("this Llama is closed: make a new one")
        if os.getpid() != self._pid:
            raise ConcurrentUseError(
                "this Llama was made before a fork, and native threads do not survive one: load it in the child "
                "process (multiprocessing start method 'spawn')"
            )

    @property
    def schedulers(self) -> Sequence[Scheduler]:
        """The one that it steps."""
        return (self.scheduler,)

    @property
    def idle(self) -> bool:
        """Whether nobody leads and there is nothing to do."""
        return not self._lead.locked() and self.scheduler.idle

    @contextmanager
    def paused(self) -> Iterator[Sequence[Scheduler]]:
        """The schedulers, while nobody steps them."""
        self.check()
        with self._lead:
            yield self.schedulers

    def submit(self, *requests: Request) -> None:
        """Queue requests."""
        for request in requests:
            self.scheduler.submit(request)

    def cancel(self, request: Request) -> None:
        """End a request as "cancelled" in the next step."""
        self.scheduler.cancel(request)

    def run(self, request: Request, ready: Callable[[], bool]) -> None:
        """Return once `ready()`; meanwhile lead, or wait for the thread that leads.

        Args:
            request: its `notify` wakes this thread while another one leads.
        """
        lead = self._lead
        while not ready():
            if lead.locked() or self._waiting:
                wake = request.wake
                if wake is None:
                    wake = request.wake = threading.Event()
                self._waiting.append(wake)
                if not self._wait(wake, ready):
                    return
            try:
                with lead:
                    step = self.scheduler.step
                    while not ready():
                        self.check()
                        if not step() and not ready() and self.scheduler.idle:
                            raise BackendFailure(
                                "the request was lost: this is a defect of llcuda_ffi, please report it"
                            )
            finally:
                self._pass_on()

    def _wait(self, wake: threading.Event, ready: Callable[[], bool]) -> bool:
        """Sleep until the request has something (False) or nobody leads (True)."""
        try:
            while True:
                if ready():
                    return False
                if not self._lead.locked():
                    return True
                # the time-out is a net for a leader that died between its check and its call; wakes come by events
                wake.wait(0.1)
                wake.clear()
        finally:
            try:
                self._waiting.remove(wake)
            except ValueError:
                pass
            if not self._lead.locked():
                self._pass_on()

    def _pass_on(self) -> None:
        """Wake one waiting thread, to lead."""
        try:
            self._waiting[0].set()
        except IndexError:
            pass

    def close(self) -> None:
        """End all requests. Raises ConcurrentUseError while another thread leads."""
        if self.closed:
            return
        if self._lead.locked():
            raise ConcurrentUseError("this Llama is generating in another thread: close it when that is done")
        self.closed = True
        if os.getpid() == self._pid:
            with self._lead:
                self.scheduler.close()
