"""What a user sees of a transfer: a bar on a terminal, plain lines elsewhere, silence when asked."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_SECONDS = 5.0


def note(line: str, progress: bool | None = None) -> None:
    """Print one line to stderr, unless `progress` is False."""
    if progress is not False and sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def megabytes(size: int | None) -> str:
    """A size as people read it."""
    return "unknown size" if size is None else f"{size / 1e6:.1f} MB"


class Steps:
    """The steps of a long task, used as a context manager: how many are done and about how long the rest takes."""

    def __init__(self, label: str, show: bool | None) -> None:
        self.label = label
        self._show = show is not False and sys.stderr is not None
        self._bar: tqdm[Any] | None = None
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> Steps:
        if self._show and not sys.stderr.isatty():
            note(self.label)
        return self

    def at(self, done: int, total: int) -> None:
        """Say that `done` of `total` steps are done."""
        if not self._show:
            return
        if self._first is None:
            self._first = done - 1
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=total, desc=self.label, unit="step", initial=self._first, file=sys.stderr)
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            left = (self._last - self._start) / max(1, done - self._first) * (total - done)
            note(
                f"  {100 * done // total}% ({done} of {total} steps, about {left / 60:.0f} min {left % 60:.0f} s left)"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Progress:
    """The progress of one transfer, used as a context manager.

    Args:
        label: What is transferred.
        total: Its size in bytes, if known.
        show: False for silence; None or True for a bar on a terminal and plain lines elsewhere.
    """

    def __init__(self, label: str, total: int | None, show: bool | None) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._show = show is not False and sys.stderr is not None
        self._bar: tqdm[Any] | None = None
        self._last = time.monotonic()
        self._said = ""

    def __enter__(self) -> Progress:
        if not self._show:
            return self
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=self.label, unit="B", unit_scale=True, file=sys.stderr)
        else:
            size = "" if self.total is None else f" ({megabytes(self.total)})"
            note(f"fetching {self.label}{size}")
        return self

    def at(self, done: int) -> None:
        """Say that `done` bytes are there; fewer than before after a restart."""
        if self._bar is not None:
            self._bar.update(done - self.done)
        elif self._show and time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            line = f"  {100 * done / self.total:.0f}%" if self.total else f"  {megabytes(done)}"
            if line != self._said:
                note(line)
            self._said = line
        self.done = done

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._show and kind is None:
            note(f"fetched {self.label}")
