"""The engine of `Llama(…, isolate=True)`: requests go to a child process, which computes them.

When the child dies, every request that it had ends with BackendFailure and its last words; the next one starts a new
child. Has the methods of engine.state.LocalEngine.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.projector import Image, MediaChunk, Sound, TokenChunk
from ..engine.metrics import Metrics, MetricsSnapshot
from ..engine.request import Request
from ..engine.saved_prefixes import SavedPrefixes, read_prefixes, write_prefixes
from ..errors import BackendFailure, Cancelled, ClosedError, ConcurrentUseError, InvalidRequest, LlcudaError
from .channel import ChannelClosed
from .child import Child, Question, take
from .media import medium_out, prompt_out
from .wire import plain, plain_params

_NET_S = 0.1  # a waiting thread looks again after this; wakes come by events
_METRICS_S = 1.0  # how long the child may take to tell its metrics


class RemoteEngine:
    """Has requests computed by a child process.

    Attributes:
        ready: what the child said of its Llama: n_ctx, can_shift, projector.
        failure: always None: a child that died is replaced.
        deaths: children that died of themselves.
        closed: whether it was closed.
    """

    failure: BaseException | None = None
    schedulers: Sequence[Any] = ()

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Start a child and wait until its model is loaded.

        Args:
            settings: of Llama, as plain values.

        Raises:
            as Llama; BackendFailure: the child died while it loaded.
        """
        if sys.platform == "win32" or not sys.executable:
            raise InvalidRequest("isolate=True needs a system with Unix sockets and a Python that can be started again")
        self._settings = settings
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._child: Child | None = None
        self._metrics: MetricsSnapshot | None = None
        self.closed = False
        self.deaths = 0
        self.ready: dict[str, Any] = {}
        self._waiters = 0
        self._killer: list[Child] = []  # what the finalizer ends: it must not hold this object
        self._finalizer = weakref.finalize(self, _end_all, self._killer, self._pid)
        question = Question()
        try:
            self._ask("ready", question)
            question.done.wait()
            if question.error is not None:
                raise question.error
        except BaseException:
            self._end()
            raise
        self.ready = question.value

    # --- the child ---

    def _started(self) -> Child:
        """The child; to be called with the lock held."""
        if self.closed:
            raise ClosedError("this Llama is closed: make a new one")
        if self._child is None or not self._child.alive:
            child = Child(self._settings)
            self._child = child
            self._killer[:] = [child]
            threading.Thread(
                target=_listen, args=(weakref.ref(self), child), name="llcuda_ffi-isolated", daemon=True
            ).start()
        return self._child

    def _ask(self, op: str, question: Question, blob: bytes = b"", **arguments: Any) -> None:
        with self._lock:
            child = self._started()
            [number] = child.numbers([question])
            child.channel.send({"op": op, "id": number, **arguments}, blob, now=True)

    def _call(self, op: str, blob: bytes = b"", **arguments: Any) -> Any:
        """Ask and wait.

        Raises:
            as `check`; what the child raised; BackendFailure: it died.
        """
        self.check()
        question = Question()
        self._ask(op, question, blob, **arguments)
        question.done.wait()
        if question.error is not None:
            raise question.error
        return question.value

    def died(self, child: Child, why: str) -> None:
        """A child is gone: what it had is answered. Called by the thread that listens to it."""
        with self._lock:
            child.alive = False
            left, child.asked = list(child.asked.values()), {}
            closing = self.closed
            self.deaths += not closing
        for asked in left:
            error: LlcudaError
            if closing:
                error = Cancelled("the Llama was closed while the request was running")
            else:
                error = BackendFailure(f"the engine's process ended ({why}). The next call starts a new one")
            if isinstance(asked, Question):
                asked.answer(error=error)
            elif not asked.done:
                asked.fail(error)

    @property
    def pid(self) -> int | None:
        """The child's process id; None where there is none."""
        child = self._child
        return child.process.pid if child is not None and child.alive else None

    # --- as LocalEngine ---

    def check(self) -> None:
        """Refuse use after close and after a fork.

        Raises:
            ClosedError, ConcurrentUseError: accordingly.
        """
        if self.closed:
            raise ClosedError("this Llama is closed: make a new one")
        if os.getpid() != self._pid:
            raise ConcurrentUseError("this Llama was made before a fork: make another one in the child process")

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        child = self._child
        return child is None or not child.asked

    def start(self) -> None:
        """Does nothing: the child computes, nobody has to lead."""

    def submit(self, *requests: Request) -> None:
        """Send requests to the child; starts one if there is none. Never waits for it.

        Raises:
            as `check`; InvalidRequest: a setting that cannot leave this process.
        """
        self.check()
        groups: dict[int, list[Request]] = {}
        for request in requests:
            if request.done:  # by chunks that it was begun with
                continue
            groups.setdefault(id(request.place.group or request), []).append(request)
        messages = []
        for members in groups.values():
            # n completions are asked for together, unless the first of them was sent before, or each goes on by itself
            whole = members[0].place.group is None and not any(one.begun for one in members)
            for part in [members] if whole else [[one] for one in members]:
                first = part[0]
                message = {
                    "op": "generate",
                    # its tokens: only what writes the prompt again needs the text, and takes it apart again
                    "prompt": (first.params.echo and first.prompt_text) or first.prompt.tolist(),
                    "params": plain_params(first.params, first.seed, len(part)),
                    "stream": first.streams,
                    "begun": [plain(dataclasses.replace(chunk, index=0)) for chunk in first.begun],
                }
                blob = b""
                if first.media is not None:
                    message["prompt"] = first.prompt.tolist()
                    message["media"], blob = prompt_out(first.media)
                messages.append((part, message, blob))
        with self._lock:
            child = self._started()
            for part, message, blob in messages:
                child.channel.send({**message, "ids": child.numbers(part)}, blob, now=True)

    def encode(self, medium: Image | Sound) -> list[TokenChunk | MediaChunk]:
        """What an image or a sound becomes, by the child's projector.

        Raises:
            as `check` and Projector.encode; BackendFailure: the child died.
        """
        described, blob = medium_out(medium)
        found: list[TokenChunk | MediaChunk] = self._call("encode", blob, medium=described)
        return found

    def cancel(self, *requests: Request) -> None:
        """End requests as "cancelled"."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            child = self._child
            if child is None:
                return
            wanted = {id(request) for request in requests if not request.done}
            ids = [number for number, asked in child.asked.items() if id(asked) in wanted] if wanted else []
            if ids:
                child.channel.send({"op": "cancel", "ids": ids})

    def wait(self, request: Request, ready: Callable[[], bool] | None = None) -> None:
        """Return once `ready()`, which is that the request is done by default.

        Raises:
            as `check`.
        """
        ready = ready or (lambda: request.done)
        wake = request.wake
        if wake is None:
            wake = request.wake = threading.Event()
        self._waiters += 1
        try:
            while not ready():
                self.check()
                wake.wait(_NET_S)
                wake.clear()
        finally:
            self._waiters -= 1

    def call(self, function: Callable[[Any], Any]) -> list[Any]:
        """Not here: a function cannot be sent.

        Raises:
            InvalidRequest: always.
        """
        raise InvalidRequest("with isolate=True the schedulers are in another process: no function can be run there")

    def metrics(self) -> MetricsSnapshot:
        """The child's counters: of the present child, since it was started; while it loads, the last ones known."""
        question = Question()
        child = self._child
        if child is not None and child.alive and child.loaded and not self.closed:
            self._ask("metrics", question)
            if question.done.wait(_METRICS_S) and question.error is None:
                self._metrics = question.value
        nothing = Metrics().snapshot(queued=0, running=0, kv_used=0, kv_cells=0, n_threads=0, failure=None)
        return self._metrics or nothing

    def clear_cache(self) -> None:
        """As Llama.clear_cache."""
        self._call("clear_cache")

    def save_state(self, path: str | os.PathLike[str] | None = None) -> SavedPrefixes | int:
        """As Llama.save_state."""
        if path is not None:
            return int(self._call("save_state", path=os.path.abspath(path)))
        with tempfile.TemporaryDirectory() as folder:
            self._call("save_state", path=os.path.join(folder, "state"))
            return read_prefixes(os.path.join(folder, "state"))

    def load_state(self, state: SavedPrefixes | str | os.PathLike[str]) -> int:
        """As Llama.load_state."""
        if not isinstance(state, SavedPrefixes):
            return int(self._call("load_state", path=os.path.abspath(state)))
        with tempfile.TemporaryDirectory() as folder:
            write_prefixes(state, os.path.join(folder, "state"))
            return int(self._call("load_state", path=os.path.join(folder, "state")))

    @property
    def in_use(self) -> bool:
        """Whether a thread waits in one of its calls."""
        return self._waiters > 0

    def stop(self) -> None:
        """Does nothing: there are no threads of ours in the engine."""

    def close(self, *, wait: bool = False) -> None:
        """End every request with Cancelled, and the child. Does nothing the second time.

        Raises:
            ConcurrentUseError: another thread is in one of its calls, and `wait` is False.
        """
        if self.closed:
            return
        if self.in_use and not wait and os.getpid() == self._pid:
            raise ConcurrentUseError("this Llama is generating in another thread: close it when that is done")
        self._end()

    def _end(self) -> None:
        with self._lock:
            self.closed = True
            child = self._child
        self._finalizer()
        if child is not None:
            self.died(child, "closed")


def _end_all(children: list[Child], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork's copy: the child is the parent's
    while children:
        children.pop().end()


def _listen(owner: weakref.ref[RemoteEngine], child: Child) -> None:
    """What the thread of a child does: hand out what it sends, until it ends."""
    why = ""
    try:
        for message, blob in child.channel.messages():
            take(child, message, blob)
    except (ChannelClosed, ValueError, TypeError, LookupError, AttributeError) as error:
        why = f"it sent what is no message: {type(error).__name__}: {error}; "
        child.process.kill()
    engine = owner()
    if engine is None or engine.closed:
        return  # who closes ends the child, and answers what is left
    why += child.last_words()
    engine.died(child, why)
    child.end()
