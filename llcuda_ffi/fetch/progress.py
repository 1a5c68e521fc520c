"""What a user sees of a long task: a bar on a terminal or in a notebook, plain lines elsewhere, silence when asked."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from types import TracebackType
from typing import Any

LINE_SECONDS = 5.0


def note(line: str, progress: bool | None = None) -> None:
    """Print one line to stderr, unless `progress` is False."""
    if progress is not False and sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def megabytes(size: int | None) -> str:
    """A size as people read it."""
    return "unknown size" if size is None else f"{size / 1e6:.1f} MB"


def on_screen() -> bool:
    """Whether stderr shows bars: a terminal, or a cell of a notebook."""
    return sys.stderr is not None and (sys.stderr.isatty() or _in_notebook())


def _in_notebook() -> bool:
    return type(sys.stderr).__module__.startswith("ipykernel")


class Progress:
    """How far a task is, used as a context manager: the one kind of progress that this package shows.

    Args:
        label: what is done; of bytes, what is fetched.
        total: how much there is, None where that is not known yet.
        show: False for silence; None or True for a bar where bars are seen, and plain lines elsewhere.
        unit: what is counted: "B" for the bytes of a transfer, or "prompt", "text", "step", "%".
        done: how much of it was there before.
    """

    def __init__(self, label: str, total: int | None, show: bool | None, *, unit: str = "B", done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._unit, self._show = unit, show is not False and sys.stderr is not None
        self._bar: Any = None
        self._lock = Lock()
        self._first, self._start = done, time.monotonic()
        self._last, self._said = self._start, ""

    def __enter__(self) -> Progress:
        if not self._show:
            return self
        if on_screen():
            # "auto" draws with widgets in a notebook, and warns where there are none
            kind = import_module("tqdm.auto" if _in_notebook() and find_spec("ipywidgets") else "tqdm").tqdm
            unit = self._unit if self._unit in "B%" else f" {self._unit}s"
            what = {"desc": self.label or None, "unit": unit, "unit_scale": unit == "B", "file": sys.stderr}
            self._bar = kind(total=self.total, initial=self.done, **what)
        elif self._unit == "B":
            note(f"fetching {self.label}" + ("" if self.total is None else f" ({megabytes(self.total)})"))
        elif self.label:
            note(self.label)
        return self

    def advance(self, more: int) -> None:
        """Say that `more` were done; from any thread."""
        with self._lock:
            self.at(self.done + more)

    def at(self, done: int, total: int | None = None) -> None:
        """Say that `done` are done, of `total` where that was not known before; fewer than before after a restart."""
        if total is not None:
            self.total = total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(done - self.done)
        elif self._show and time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            line = self._line(done)
            if line != self._said:
                note(line)
            self._said = line
        self.done = done

    def _line(self, done: int) -> str:
        if not self.total:
            return f"  {megabytes(done)}" if self._unit == "B" else f"  {done} {self._unit}s"
        share = f"  {100 * done // self.total}%"
        if self._unit in "B%":
            return share
        left = (self._last - self._start) / max(1, done - self._first) * (self.total - done)
        return f"{share} ({done} of {self.total} {self._unit}s, about {left // 60:.0f} min {left % 60:.0f} s left)"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._show and kind is None and self._unit == "B":
            note(f"fetched {self.label}")
