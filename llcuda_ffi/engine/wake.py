"""Waking coroutines from the engine's thread.

A call into an event loop costs a system call, in which the engine's thread gives the interpreter's lock away; with 64
streams it would wait for it 64 times a step. So of all that are due together only the first makes the call.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque


class _Alarm:
    """Sets events of one event loop from other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._due: deque[asyncio.Event] = deque()
        self._called = False

    def ring(self, event: asyncio.Event) -> None:
        """Have the loop set one of its events."""
        self._due.append(event)
        loop = self._loop()
        if not self._called and loop is not None:
            self._called = True
            try:
                loop.call_soon_threadsafe(self._run)
            except RuntimeError:
                pass  # the loop was closed: nobody waits any more

    def _run(self) -> None:
        self._called = False  # before the look: what is added after it calls again
        while self._due:
            self._due.popleft().set()


_alarms: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Alarm] = weakref.WeakKeyDictionary()


class LoopWake:
    """What a request sets, as a threading.Event, when it has something: wakes a coroutine of the running event loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        alarm = _alarms.get(loop)
        self._alarm = _alarms.setdefault(loop, _Alarm(loop)) if alarm is None else alarm
        self._event = asyncio.Event()
        self._set = False  # many requests may set it before the loop comes to it

    def set(self) -> None:
        """Wake it; from any thread."""
        if not self._set:
            self._set = True
            self._alarm.ring(self._event)

    async def wait(self) -> None:
        """Return when it was set since the last call."""
        await self._event.wait()
        self._event.clear()
        self._set = False
