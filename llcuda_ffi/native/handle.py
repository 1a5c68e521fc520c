"""Handles: Python objects that own a native object.

A handle keeps its parent alive (a context its model). What is freed, and in which order, is kept apart from the
handles in `_Resource`, so that garbage collection may visit handles in any order, also those in a cycle: closing a
resource closes its children first, and only once. Freeing runs from `weakref.finalize`, which also runs at
interpreter exit, newest first.

The interpreter ends while daemon threads still run, and the C library's own tear-down must not meet one that
computes. So at exit computations are asked to stop and waited for, the threads in them never come back to Python
code, and nothing is freed that such a thread could hold.

Use after `close()` raises ClosedError; use from a second thread at the same time, and use after a fork, raise
ConcurrentUseError.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import ClosedError, ConcurrentUseError

if TYPE_CHECKING:
    from typing_extensions import Self

_generation = 0
_PATIENCE = 60.0  # seconds that the end of the process waits for a computation that cannot be stopped
_leaver: int | None = None  # the thread that ends the process
_left = False  # other threads were running then: nothing is freed any more
_live: weakref.WeakSet[_Resource] = weakref.WeakSet()
_registering = threading.Lock()
_flights: set[threading.Lock] = set()


def _forked() -> None:
    global _generation, _registering
    _generation += 1
    _registering = threading.Lock()
    _flights.clear()


os.register_at_fork(after_in_child=_forked)


def leaving() -> bool:
    """Whether another thread is ending the process: a callback from C then asks to stop."""
    return _leaver is not None and _leaver != threading.get_ident()


def park() -> None:
    """Where a daemon thread stays once the process is ending."""
    if leaving():
        threading.Event().wait()


@contextmanager
def in_flight() -> Iterator[None]:
    """Around a long C call that belongs to no handle yet: the end of the process waits for it."""
    lock = threading.Lock()
    _flights.add(lock)
    try:
        park()  # after the lock can be seen: either it is held at the end of the process, or this thread stays here
        with lock:
            yield
    finally:
        _flights.discard(lock)
    park()


def _leave() -> None:
    """Run at exit, before the finalizers: stop what daemon threads compute, and let no more begin."""
    global _leaver, _left
    _leaver = threading.get_ident()
    _left = threading.active_count() > 1
    if not _left:
        return
    with _registering:
        resources = [resource for resource in _live if resource.generation == _generation]
    for resource in resources:
        resource.stop()
    until = monotonic() + _PATIENCE
    for lock in (*_flights, *(resource.lock for resource in resources)):
        lock.acquire(timeout=max(0.0, until - monotonic()))  # and kept: nobody gets in again


class _Resource:
    """A native pointer, the call that frees it, and the resources that must be freed before it."""

    __slots__ = ("__weakref__", "children", "free", "generation", "lock", "parents", "pointer", "stop")

    def __init__(self, pointer: Any, free: Callable[[Any], object], parents: tuple[_Resource, ...]) -> None:
        self.pointer = pointer
        self.free = free
        self.parents = parents
        self.children: dict[_Resource, None] = {}
        self.lock = threading.Lock()
        self.generation = _generation
        self.stop: Callable[[], object] = int  # asks a computation to end; most have none that takes long
        with _registering:
            _live.add(self)
        for parent in parents:
            parent.children[self] = None

    def busy(self) -> bool:
        return self.lock.locked() or any(child.busy() for child in list(self.children))

    def close(self) -> None:
        if self.pointer is None or _left or self.busy():
            return
        pointer, self.pointer = self.pointer, None
        for child in reversed(list(self.children)):
            child.close()
        if self.generation == _generation:  # a forked child never frees what its parent made
            self.free(pointer)
        for parent in self.parents:
            parent.children.pop(self, None)


@cache
def _before_finalizers() -> None:
    """Have `_leave` run before the finalizers, which registered themselves when the first of them was made."""
    atexit.register(_leave)


class Handle:
    """The base of every object that owns a native pointer.

    Raises (from every use):
        ClosedError: the object, or the object that it belongs to, was closed.
        ConcurrentUseError: another thread is using it, or it was made before a fork.
    """

    _resource: _Resource

    def _own(self, pointer: Any, free: Callable[[Any], object], *parents: Handle) -> None:
        """Take ownership of `pointer`; `parents` must outlive it."""
        self._resource = _Resource(pointer, free, tuple(parent._resource for parent in parents))
        self._parents = parents
        self._finalizer = weakref.finalize(self, self._resource.close)
        _before_finalizers()

    @property
    def closed(self) -> bool:
        """Whether the native object has been freed."""
        return self._resource.pointer is None

    @property
    def _ptr(self) -> Any:
        """The native pointer, for calls that any thread may make."""
        resource = self._resource
        pointer = resource.pointer
        if pointer is None:
            raise ClosedError(f"this {type(self).__name__} is closed: make a new one")
        if resource.generation != _generation:
            raise ConcurrentUseError(
                f"this {type(self).__name__} was made before a fork, and native threads do not survive one: "
                "load it in the child process (multiprocessing start method 'spawn')"
            )
        return pointer

    def _exclusive(self) -> threading.Lock:
        """The lock for `with`: one thread at a time may use the object.

        The check and the acquisition are two steps on purpose: should two threads pass the check at once, one waits
        for the other, which is as safe; and `with` leaves no gap in which Ctrl-C could leak the lock.
        """
        lock = self._resource.lock
        if lock.locked():
            park()
            raise ConcurrentUseError(
                f"this {type(self).__name__} is in use by another call: one thread at a time may use it; "
                "give each thread its own, or share a Llama, which queues requests"
            )
        return lock

    def _back(self) -> None:
        """After a long C call under `_exclusive`: a daemon thread of a process that is ending stays here."""
        if leaving():
            self._resource.lock.release()
            park()

    def close(self) -> None:
        """Free the native object and everything made from it. Does nothing the second time.

        Raises:
            ConcurrentUseError: it, or an object made from it, is in use by another thread.
        """
        if self._resource.pointer is None:
            return
        if self._resource.busy():
            raise ConcurrentUseError(
                f"this {type(self).__name__} is in use by another thread: close it after that call"
            )
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
