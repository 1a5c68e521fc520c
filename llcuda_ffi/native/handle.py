"""Handles: Python objects that own a native object.

A handle keeps its parent alive (a context its model). What is freed, and in which order, is kept apart from the
handles in `_Resource`, so that garbage collection may visit handles in any order, also those in a cycle.

Every C call holds one of two locks of its handle and reads the pointer under it:

- `exclusive()`: one thread at a time (contexts, sampler chains). A second thread gets ConcurrentUseError.
- `shared()`: any number of threads (models and their vocabularies). Each thread has a lock of its own.

`close()` takes the pointers of the object and of everything made from it away, and only then looks at those locks.
A call that began before keeps its lock: an exclusive one makes `close()` put the pointers back and raise
ConcurrentUseError, shared ones are waited for. A call that begins later finds no pointer and raises ClosedError.
Either way nothing is freed while C uses it. Locks, not counters, because `with lock` is one step to Ctrl-C: no
exception can come between entering and leaving and have an object counted as used for ever.

At exit daemon threads may still be in C, which the C library's own end does not survive. So computations are asked
to stop and waited for, the threads in them never come back to Python code, and nothing that they hold is freed.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..child_process import after_fork
from ..errors import ClosedError, ConcurrentUseError
from .log import Listener, listen
from .one_process import OneProcess

if TYPE_CHECKING:
    from typing_extensions import Self

_generation = 0
_PATIENCE = 60.0  # seconds that the end of the process waits for a computation that cannot be stopped
_leaver: int | None = None  # the thread that ends the process
_left = False  # other threads were running then: nothing is freed any more
_live: weakref.WeakSet[_Resource] = weakref.WeakSet()
_registering: Any = threading.RLock()  # reentrant: the collector may finalize one handle while another is made
_flights: set[threading.Lock] = set()


def _forked() -> None:
    global _generation, _registering
    _generation += 1
    _registering = threading.RLock()
    _flights.clear()


after_fork(_forked)


def generation() -> int:
    """How many forks this process comes from, as far as Python made them; cheaper to ask for than the process id."""
    return _generation


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
    _leaver = me = threading.get_ident()
    _left = threading.active_count() > 1
    if not _left:
        return
    with _registering:
        resources = [resource for resource in _live if resource.generation == _generation]
    for resource in resources:
        resource.stop()
    until = monotonic() + _PATIENCE
    users = (lock for resource in resources for ident, lock in list(resource.users.items()) if ident != me)
    for lock in (*_flights, *(resource.lock for resource in resources), *users):
        lock.acquire(timeout=max(0.0, until - monotonic()))  # and kept: nobody gets in again


class _Resource:
    """A native pointer, the call that frees it, and the resources that must be freed before it.

    Attributes:
        pointer: None once it is closed, or while `close` decides.
        parents, children: what must outlive it, and what it must outlive.
        lock: held during exclusive calls.
        users: a lock for each thread that made a shared call; held during those calls.
        stop: asks a computation to end; most resources have none that takes long.
        unlink: run by `close` before anything is freed, while nobody can use the resource.
    """

    __slots__ = (
        "__weakref__", "children", "closing", "free", "generation", "lock", "parents", "pointer", "stop", "unlink",
        "users",
    )  # fmt: skip

    def __init__(
        self, pointer: Any, free: Callable[[Any], object], parents: tuple[_Resource, ...], unlink: Callable[[], object]
    ) -> None:
        self.pointer = pointer
        self.free = free
        self.parents = parents
        self.children: dict[_Resource, None] = {}
        self.lock = threading.Lock()
        self.users: dict[int, Any] = {}
        self.generation = _generation
        self.closing = False
        self.stop: Callable[[], object] = int
        self.unlink = unlink
        with _registering:
            _live.add(self)
            for parent in parents:
                parent.children[self] = None

    def in_use(self) -> bool:
        """Whether a call is inside that `close` does not wait for: an exclusive one, or this thread's own."""
        mine = self.users.get(threading.get_ident())
        return self.lock.locked() or (mine is not None and _is_held(mine))

    def tree(self) -> list[_Resource]:
        """It and everything made from it, in the order of freeing."""
        order: dict[_Resource, None] = {}

        def visit(resource: _Resource) -> None:
            for child in reversed(list(resource.children)):
                visit(child)
            order[resource] = None

        visit(self)
        return list(order)

    def close(self) -> bool:
        """Free the pointer and, before it, everything made from it; once.

        Returns:
            False where one of them is in use: nothing was changed then.
        """
        if self.pointer is None or _left:
            return not self.closing
        taken: list[tuple[_Resource, Any]] = []
        done = False
        try:
            with _registering:
                for resource in self.tree():
                    if resource.pointer is not None:
                        taken.append((resource, resource.pointer))
                        resource.closing, resource.pointer = True, None
            if self.generation == _generation:
                if any(resource.in_use() for resource, _ in taken):
                    return False
                for resource, _ in taken:
                    for lock in list(resource.users.values()):
                        with lock:
                            pass  # its call is over, and a later one finds no pointer
                for resource, _ in taken:
                    resource.unlink()
            with listen():  # what a log handler raises comes when everything is freed
                while taken:
                    resource, pointer = taken.pop(0)
                    resource.closing = False
                    if resource.generation == _generation:  # a forked child never frees what its parent made
                        resource.free(pointer)
                    for parent in resource.parents:
                        parent.children.pop(resource, None)
            done = True
        finally:
            if not done:  # in use, or an exception came between
                for resource, pointer in taken:
                    resource.closing, resource.pointer = False, pointer
        return True


def _is_held(lock: Any) -> bool:
    """Whether this thread holds a reentrant lock."""
    try:
        lock.release()
    except RuntimeError:
        return False
    lock.acquire()
    return True


@cache
def _before_finalizers() -> None:
    """Have `_leave` run before the finalizers, which registered themselves when the first of them was made."""
    atexit.register(_leave)


class Handle(OneProcess):
    """The base of every object that owns a native pointer.

    Raises (from every use):
        ClosedError: the object, or the object that it belongs to, was closed.
        ConcurrentUseError: another thread is using it, or it was made before a fork.
    """

    _resource: _Resource

    def _own(
        self,
        pointer: Any,
        free: Callable[[Any], object],
        *parents: Handle,
        unlink: Callable[[], object] = int,
    ) -> None:
        """Take ownership of `pointer`.

        Args:
            free: frees it.
            parents: must outlive it; the caller holds them (`shared`, `exclusive`) since before it was made.
            unlink: run by `close` before anything is freed, while nobody can use the object.
        """
        self._resource = _Resource(pointer, free, tuple(parent._resource for parent in parents), unlink)
        self._parents = parents
        self._finalizer = weakref.finalize(self, self._resource.close)
        _before_finalizers()

    def _make(
        self,
        make: Callable[..., Any],
        arguments: Sequence[Any],
        free: Callable[[Any], object],
        *parents: Handle,
        unlink: Callable[[], object] = int,
    ) -> tuple[bool, Listener]:
        """Own what a long function of llama.h makes. Whatever is raised meanwhile, also in a callback: nothing leaks.

        Returns:
            False where it made nothing (NULL); and what libllama said.
        """
        made: list[Any] = []
        try:
            with in_flight(), listen() as heard:
                # from the call to the list without Python code between: Ctrl-C finds the pointer there
                made.extend(map(make, *([argument] for argument in arguments)))
            if made[0]:
                self._own(made[0], free, *parents, unlink=unlink)
        except BaseException as error:
            if made and made[0] and "_resource" not in vars(self):
                with listen() as freeing:
                    freeing.raised = error  # it stays the one that is raised
                    free(made[0])
            raise
        return bool(made[0]), heard

    def _outlive(self, child: Handle) -> None:
        """Become a further parent of `child`: it is closed before this one."""
        mine, its = self._resource, child._resource
        with _registering:
            mine.children[its] = None
            its.parents = (*its.parents, mine)
        child._parents = (*child._parents, self)

    def _let_go(self, child: Handle) -> None:
        """Undo `_outlive`."""
        self._resource.children.pop(child._resource, None)

    @property
    def closed(self) -> bool:
        """Whether the native object has been freed."""
        return self._resource.pointer is None and not self._resource.closing

    @property
    def usable(self) -> bool:
        """Whether it can be used: neither closed nor about to be."""
        return self._resource.pointer is not None

    @property
    def pointer(self) -> Any:
        """The native object, for a call of llama.h inside `with handle.shared()` or `with handle.exclusive()`."""
        resource = self._resource
        pointer = resource.pointer
        if pointer is None:
            if resource.closing:
                raise ConcurrentUseError(f"this {type(self).__name__} is being closed by another thread")
            raise ClosedError(f"this {type(self).__name__} is closed: make a new one")
        if resource.generation != _generation:
            raise ConcurrentUseError(
                f"this {type(self).__name__} was made before a fork, and native threads do not survive one: "
                "load it in the child process (multiprocessing start method 'spawn')"
            )
        return pointer

    def shared(self) -> AbstractContextManager[object]:
        """For `with`: a call that any number of threads may make at once; `close` waits until it is over."""
        users, me = self._resource.users, threading.get_ident()
        lock: AbstractContextManager[object] = users.get(me) or users.setdefault(me, threading.RLock())
        if _leaver is not None:
            park()  # after the lock can be seen: at the end of the process it is held, or this thread stays here
        return lock

    def exclusive(self) -> AbstractContextManager[object]:
        """For `with`: a call that one thread at a time may make; `close` meanwhile raises ConcurrentUseError.

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
        """After a long C call under `exclusive`: a daemon thread of a process that is ending stays here."""
        if leaving():
            self._resource.lock.release()
            park()

    def close(self) -> None:
        """Free the native object and everything made from it. Does nothing the second time.

        Calls that threads share (tokenizing, metadata) are waited for.

        Raises:
            ConcurrentUseError: it, or an object made from it, is in use by another thread.
        """
        if not self._resource.close():
            raise ConcurrentUseError(
                f"this {type(self).__name__} is in use by another thread: close it after that call"
            )
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
