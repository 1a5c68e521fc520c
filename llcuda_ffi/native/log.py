"""libllama's log, sent to `logging.getLogger("llcuda_ffi.native")`.

libllama logs in pieces: a line may come in several calls, the later ones with level CONT. Pieces are joined into
lines. The last lines are kept to explain failures: an exception carries them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
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

_KEPT = 64
_recent: deque[tuple[int, str]] = deque(maxlen=_KEPT)
_partial: list[str] = []
_level = _INFO
_counter = 0
_callback: Any = None
_captures: list[list[str]] = []


def install(ffi: Any, lib: Any) -> None:
    """Route the log of this library here (llama_log_set, which sets ggml's log as well)."""
    global _callback
    string = ffi.string

    def receive(level: int, text: Any, _user_data: Any) -> None:
        _receive(level, string(text).decode("utf-8", "replace"))

    _callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", receive)
    lib.llama_log_set(_callback, ffi.NULL)


def _receive(level: int, text: str) -> None:
    global _level
    if level != _CONT:
        _flush()
        _level = level
    _partial.append(text)
    if text.endswith("\n"):
        _flush()


def _flush() -> None:
    global _counter
    if not _partial:
        return
    line = "".join(_partial).rstrip()
    _partial.clear()
    # libllama draws its load progress with dots; they are no message
    if not line.strip("."):
        return
    _counter += 1
    _recent.append((_level, line))
    for lines in _captures:
        lines.append(line)
    logger.log(_LEVELS.get(_level, logging.INFO), "%s", line)


def mark() -> int:
    """A point in the log, for `since`."""
    return _counter


@contextmanager
def capture() -> Iterator[list[str]]:
    """Every line logged within the block, in whatever thread, also those that no handler wants."""
    lines: list[str] = []
    _captures.append(lines)
    try:
        yield lines
    finally:
        _flush()
        _captures[:] = [other for other in _captures if other is not lines]


def since(point: int, *, level: int = _INFO) -> list[str]:
    """The lines logged since `mark()` of at least this ggml level; at most the last 64 lines are kept."""
    _flush()
    new = _counter - point
    lines = list(_recent)[-new:] if new > 0 else []
    return [line for at, line in lines if at >= level]


def recent(limit: int = 8, *, level: int = _INFO) -> list[str]:
    """The last lines of at least this ggml level."""
    return [line for at, line in list(_recent) if at >= level][-limit:]


def why(point: int) -> str:
    """What libllama said since `point`, for the end of a message: warnings and errors, else the last lines."""
    lines = since(point, level=_WARN) or since(point)[-2:]
    return "; libllama said: " + " | ".join(lines[-4:]) if lines else ""
