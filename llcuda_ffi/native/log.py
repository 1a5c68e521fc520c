"""What libllama says, and what is raised while it calls back.

libllama logs from the thread that called it, in pieces: a line may come in several calls, the later ones with level
CONT. Pieces are joined into lines, which go to `logging.getLogger("llcuda_ffi.native")` and to whoever listens:

    with listen() as heard:
        pointer = lib.llama_init_from_model(…)
    if not pointer:
        raise ModelError(f"…{heard.why()}")

A listener hears its own thread only, so loads in several threads do not mix. Threads that libllama started itself
belong to no call; their lines go to the listener if there is but one.

cffi prints an exception that a callback lets out, and drops it: Ctrl-C, when its handler happens to run there. Here
each callback has `onerror=keep`. The exception is kept by the listener, `heard.raised` lets a callback ask C to stop,
and leaving the block raises it.
"""

from __future__ import annotations

import _thread
import logging
import threading
from collections import deque
from types import TracebackType
from typing import Any

logger = logging.getLogger("llcuda_ffi.native")
logger.addHandler(logging.NullHandler())  # a library says nothing by itself: what matters travels in exceptions

_DEBUG, _INFO, _WARN, _ERROR, _CONT = 1, 2, 3, 4, 5
_LEVELS = {
    0: logging.INFO,
    _DEBUG: logging.DEBUG,
    _INFO: logging.DEBUG,  # libllama's INFO is hundreds of lines for each load: detail to a Python program
    _WARN: logging.WARNING,
    _ERROR: logging.ERROR,
}
_MOST_LINES = 1 << 16

_callback: Any = None
_listening: list[Listener] = []


class Listener:
    """One call of libllama, or several in a row, of one thread. Use it with `with`.

    Attributes:
        raised: the first exception that a callback let out.
    """

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self._said: deque[tuple[int, str]] | None = None  # most calls say nothing

    def lines(self, level: int = 0) -> list[str]:
        """What was said, of at least this ggml level (1 debug, 2 info, 3 warning, 4 error)."""
        return [line for at, line in self._said or () if at >= level]

    def why(self) -> str:
        """The end of an error's message: libllama's last warnings and errors, else its last lines."""
        lines = self.lines(_WARN) or self.lines(_INFO)[-2:]
        return "; libllama said: " + " | ".join(lines[-4:]) if lines else ""

    def hear(self, level: int, line: str) -> None:
        """Take note of a line."""
        if self._said is None:
            self._said = deque(maxlen=_MOST_LINES)
        self._said.append((level, line))

    def __enter__(self) -> Listener:
        _here.listeners.append(self)
        _listening.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _here.partial:
            _here.flush()
        for listeners in (_here.listeners, _listening):
            if self in listeners:
                listeners.remove(self)
        if self.raised is not None and self.raised is not error:
            raise self.raised


listen = Listener


class _Here(threading.local):
    """What this thread is in the middle of."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.level = _INFO
        self.partial: list[str] = []
        self.of_libllama = threading.get_ident() not in {thread.ident for thread in threading.enumerate()}

    def receive(self, level: int, text: str) -> None:
        """A piece of a line."""
        if level != _CONT:
            self.flush()
            self.level = level
        self.partial.append(text)
        if text.endswith("\n"):
            self.flush()

    def flush(self) -> None:
        """The line is whole."""
        if not self.partial:
            return
        line = "".join(self.partial).rstrip()
        self.partial.clear()
        # libllama draws its load progress with dots; they are no message
        if not line.strip("."):
            return
        all_of_them = list(_listening)
        only_one = all_of_them if self.of_libllama and len(all_of_them) == 1 else []
        for listener in self.listeners or only_one:
            listener.hear(self.level, line)
        logger.log(_LEVELS.get(self.level, logging.INFO), "%s", line)


_here = _Here()


def install(ffi: Any, lib: Any) -> None:
    """Route the log of this library here (llama_log_set, which sets ggml's log as well)."""
    global _callback
    string = ffi.string

    def receive(level: int, text: Any, _user_data: Any) -> None:
        _here.receive(level, string(text).decode("utf-8", "replace"))

    _callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", receive, onerror=keep)
    lib.llama_log_set(_callback, ffi.NULL)


def interrupted() -> bool:
    """Whether a callback of this thread's C call let an exception out: one that may stop the call does so."""
    return any(listener.raised is not None for listener in _here.listeners)


def keep(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """cffi's `onerror` of every callback: the exception is raised when the C call is over."""
    if _here.listeners:
        innermost = _here.listeners[-1]
        innermost.raised = innermost.raised or error
    elif isinstance(error, KeyboardInterrupt):
        _thread.interrupt_main()  # again, until it comes outside of a callback
    else:
        threading.excepthook(threading.ExceptHookArgs((kind, error, trace, threading.current_thread())))
