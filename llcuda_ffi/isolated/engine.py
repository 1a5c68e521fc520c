"""The engine of `Llama(…, isolate=True)`: requests go to a child process, which computes them.

When the child dies, every request that it had ends with BackendFailure and its last words; the next one starts a new
child. Has the methods of engine.state.LocalEngine.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from ..child_process import python_command
from ..engine.metrics import Metrics, MetricsSnapshot
from ..engine.request import Request
from ..engine.results import Chunk, Completion
from ..engine.saved_prefixes import SavedPrefixes, read_prefixes, write_prefixes
from ..errors import BackendFailure, Cancelled, ClosedError, ConcurrentUseError, InvalidRequest, LlcudaError
from .channel import Channel, ChannelClosed
from .wire import back, error_back, plain, plain_params

MODULE = "llcuda_ffi.isolated_process"
_NET_S = 0.1  # a waiting thread looks again after this; wakes come by events
_METRICS_S = 1.0  # how long the child may take to tell its metrics


class _Question:
    """Something asked of the child that is no request: metrics, states."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: LlcudaError | None = None

    def answer(self, value: Any = None, error: LlcudaError | None = None) -> None:
        self.value, self.error = value, error
        self.done.set()


class _Child:
    """A process with an engine, and what it was asked."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        self.words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self.process = subprocess.Popen(
                python_command(MODULE, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=self.words,
                stderr=self.words,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for us
            )
        except BaseException:
            ours.close()
            self.words.close()
            raise
        finally:
            theirs.close()
        self.channel = Channel(ours, plain)
        self.asked: dict[int, Request | _Question] = {}
        self.sent: dict[int, tuple[int, int]] = {}  # tokens and characters of a stream
        self.next_id = 0
        self.alive = True
        self.loaded = False
        self.channel.send({"op": "load", "settings": settings})

    def numbers(self, asked: Sequence[Request | _Question]) -> list[int]:
        """Take note of what is asked; its numbers."""
        ids = list(range(self.next_id, self.next_id + len(asked)))
        self.next_id += len(asked)
        self.asked.update(zip(ids, asked, strict=True))
        return ids

    def last_words(self) -> str:
        """How it ended, and what it wrote last."""
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        self.words.seek(max(0, self.words.seek(0, os.SEEK_END) - 8000))
        lines = [line.strip() for line in self.words.read().decode("utf-8", "replace").splitlines()]
        said = " | ".join([line for line in lines if line][-4:])[-2000:]
        hint = "; SIGKILL is how the system ends what takes too much memory" if status == -signal.SIGKILL else ""
        return f"{how}{hint}; its last words: {said or 'none'}"

    def end(self) -> None:
        """Kill it, if it still runs, and leave nothing of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.channel.close()
        self.words.close()


class RemoteEngine:
    """Has requests computed by a child process.

    Attributes:
        ready: what the child said of its Llama: n_ctx, can_shift.
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
        self._child: _Child | None = None
        self._metrics: MetricsSnapshot | None = None
        self.closed = False
        self.deaths = 0
        self.ready: dict[str, Any] = {}
        self._waiters = 0
        self._killer: list[_Child] = []  # what the finalizer ends: it must not hold this object
        self._finalizer = weakref.finalize(self, _end_all, self._killer, self._pid)
        question = _Question()
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

    def _started(self) -> _Child:
        """The child; to be called with the lock held."""
        if self.closed:
            raise ClosedError("this Llama is closed: make a new one")
        if self._child is None or not self._child.alive:
            child = _Child(self._settings)
            self._child = child
            self._killer[:] = [child]
            threading.Thread(
                target=_listen, args=(weakref.ref(self), child), name="llcuda_ffi-isolated", daemon=True
            ).start()
        return self._child

    def _ask(self, op: str, question: _Question, **arguments: Any) -> None:
        with self._lock:
            child = self._started()
            [number] = child.numbers([question])
            child.channel.send({"op": op, "id": number, **arguments}, now=True)

    def _call(self, op: str, **arguments: Any) -> Any:
        """Ask and wait.

        Raises:
            as `check`; what the child raised; BackendFailure: it died.
        """
        self.check()
        question = _Question()
        self._ask(op, question, **arguments)
        question.done.wait()
        if question.error is not None:
            raise question.error
        return question.value

    def died(self, child: _Child, why: str) -> None:
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
            if isinstance(asked, _Question):
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
            groups.setdefault(id(request.place.group or request), []).append(request)
        messages = []
        for members in groups.values():
            # n completions are asked for together, unless the first of them was sent before
            whole = members[0].place.group is None
            for part in [members] if whole else [[one] for one in members]:
                first = part[0]
                message = {
                    "op": "generate",
                    "prompt": first.prompt.tolist() if first.prompt_text is None else first.prompt_text,
                    "params": plain_params(first.params, first.seed, len(part)),
                    "stream": first.streams,
                }
                messages.append((part, message))
        with self._lock:
            child = self._started()
            for part, message in messages:
                child.channel.send({**message, "ids": child.numbers(part)}, now=True)

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
        question = _Question()
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


def _end_all(children: list[_Child], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork's copy: the child is the parent's
    while children:
        children.pop().end()


def _listen(owner: weakref.ref[RemoteEngine], child: _Child) -> None:
    """What the thread of a child does: hand out what it sends, until it ends."""
    why = ""
    try:
        for message in child.channel.messages():
            _take(child, message)
    except (ChannelClosed, ValueError, TypeError, LookupError, AttributeError) as error:
        why = f"it sent what is no message: {type(error).__name__}: {error}; "
        child.process.kill()
    engine = owner()
    if engine is None or engine.closed:
        return  # who closes ends the child, and answers what is left
    why += child.last_words()
    engine.died(child, why)
    child.end()


def _take(child: _Child, message: Any) -> None:
    """Hand out one message.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is none; what it belongs to is still in `child.asked`.
    """
    number, kind, value = message
    child.loaded = True
    asked = child.asked.get(number)
    if asked is None:
        return
    found = error_back(value) if kind == "error" else back(value)
    if isinstance(asked, _Question):
        asked.answer(**{"error" if kind == "error" else "value": found})
    elif kind == "error":
        asked.fail(found)
    elif kind == "chunk":
        if not asked.streams or not isinstance(found, Chunk):
            raise ValueError("a chunk that nobody asked for")
        if found.completion is not None:
            found.completion = asked.completion = _whole(asked, found.completion)
            asked.done = True
        tokens, chars = child.sent.get(number, (0, 0))
        asked.chunks.put(tokens, chars, found)
        child.sent[number] = tokens + len(found.token_ids), chars + len(found.text)
        asked.notify()
        return
    elif not asked.done:
        if not isinstance(found, Completion):
            raise ValueError("no completion")
        asked.completion = _whole(asked, found)
        asked.done = True
        asked.notify()
    child.asked.pop(number, None)
    child.sent.pop(number, None)


def _whole(request: Request, completion: Completion) -> Completion:
    """With the prompt, and the value of a structured output: it may be an object of a class of the caller's."""
    return dataclasses.replace(
        completion,
        prompt=request.prompt_text,
        prompt_token_ids=request.prompt.tolist(),
        parsed=request.output.parsed("eog", completion.text) if completion.parsed else None,
    )
