"""Handles: Python objects that own a native object.

A handle keeps its parent alive (a context its model). What is freed, and in which order, is kept apart from the
handles in `_Resource`, so that garbage collection may visit handles in any order, also those in a cycle: closing a
resource closes its children first, and only once. Freeing runs from `weakref.finalize`, which also runs at
interpreter exit, newest first.

Use after `close()` raises ClosedError; use from a second thread at the same time, and use after a fork, raise
ConcurrentUseError.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import ClosedError, ConcurrentUseError

if TYPE_CHECKING:
    from typing_extensions import Self

_generation = 0


def _forked() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_forked)


class _Resource:
    """A native pointer, the call that frees it, and the resources that must be freed before it."""

    __slots__ = ("__weakref__", "children", "free", "generation", "lock", "parents", "pointer")

    def __init__(self, pointer: Any, free: Callable[[Any], object], parents: tuple[_Resource, ...]) -> None:
        self.pointer = pointer
        self.free = free
        self.parents = parents
        self.children: dict[_Resource, None] = {}
        self.lock = threading.Lock()
        self.generation = _generation
        for parent in parents:
            parent.children[self] = None

    def busy(self) -> bool:
        return self.lock.locked() or any(child.busy() for child in list(self.children))

    def close(self) -> None:
        if self.pointer is None or self.busy():
            return  # busy only at interpreter exit, under a daemon thread that still computes: never free under it
        pointer, self.pointer = self.pointer, None
        for child in reversed(list(self.children)):
            child.close()
        if self.generation == _generation:  # a forked child never frees what its parent made
            self.free(pointer)
        for parent in self.parents:
            parent.children.pop(self, None)


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
            raise ConcurrentUseError(
                f"this {type(self).__name__} is in use by another call: one thread at a time may use it; "
                "give each thread its own, or share a Llama, which queues requests"
            )
        return lock

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
