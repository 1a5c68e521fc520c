"""Reading a stream that arrives in pieces, so that where it was cut never shows.

A format (see parser.py) is a generator: it consumes text through a Reader and yields when it needs more. Every decision
waits until the text before it is enough to make it, so whole and in any pieces the result is the same. What was read
once is not read again: the work grows with the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
Emit = Callable[[str], object]

_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR_END = re.compile(r"[,}\] \t\r\n]")
_STRUCTURE = re.compile(r'["{}\[\]]')
_QUOTED = re.compile(r'["\\]')


@dataclass(frozen=True)
class Marks:
    """A format whose fields are the texts that mark its parts."""

    @property
    def markers(self) -> tuple[str, ...]:
        """What must be shown to the parser even where it is a control token."""
        values = [getattr(self, field.name) for field in fields(self)]
        return tuple(value for value in values if isinstance(value, str) and value)


class Reader:
    """The text not consumed yet.

    Attributes:
        closed: no more will come.
        cut: and that is not the model's own end: a mark that has only begun at the end of the text is dropped.
    """

    def __init__(self) -> None:
        self._text, self._at = "", 0
        self._record: list[str] | None = None
        self.closed = self.cut = False

    def feed(self, text: str) -> None:
        """More text has come."""
        self._text, self._at = self._text[self._at :] + text, 0

    def back(self, text: str) -> None:
        """Put back what was consumed last."""
        self._at -= len(text)

    def start_record(self) -> None:
        """Remember what is consumed from here on, in case it is not what it seems."""
        self._record = []

    def stop_record(self) -> str:
        """What was consumed since `start_record`; nothing is remembered any more."""
        record, self._record = self._record or (), None
        return "".join(record)

    def unless_cut(self, text: str) -> str:
        """`text`, which began like something else; "" where the answer was cut before that showed."""
        return "" if self.cut else text

    @property
    def _left(self) -> int:
        return len(self._text) - self._at

    def _take(self, n: int) -> str:
        piece = self._text[self._at : self._at + n]
        self._at += n
        if self._record is not None:
            self._record.append(piece)
        return piece

    def char(self) -> Reading[str]:
        """The next character, not consumed; "" at the end."""
        while not self._left and not self.closed:
            yield
        return self._text[self._at : self._at + 1]

    def literal(self, text: str) -> Reading[bool]:
        """Consume `text` if it comes next."""
        while self._begins(text) and not self.closed:
            yield
        if self._text.startswith(text, self._at):
            self._take(len(text))
            return True
        if self.cut and self._begins(text):
            self._take(self._left)
        return False

    def _begins(self, text: str) -> bool:
        """Whether what is left is a beginning of `text`, and not all of it."""
        return self._left < len(text) and text.startswith(self._text[self._at :])

    def comes(self, options: Sequence[str]) -> Reading[bool]:
        """Whether one of `options` comes next; nothing is consumed."""
        while True:
            if self._text.startswith(tuple(options), self._at):
                return True
            begun = any(self._begins(option) for option in options)
            if self.cut and begun:
                self._take(self._left)
            if self.closed or not begun:
                return False
            yield

    def pattern(self, pattern: re.Pattern[str], most: int) -> Reading[bool]:
        """Consume what `pattern` matches within the next `most` characters, once they are there."""
        while self._left < most and not self.closed:
            yield
        match = pattern.match(self._text, self._at, self._at + most)
        if match:
            self._take(match.end() - self._at)
        return match is not None

    def space(self) -> Reading[None]:
        """Consume white space."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._take(match.end() - self._at)
            if self._left or self.closed:
                return
            yield

    def until(self, markers: Sequence[str], emit: Emit) -> Reading[str]:
        """Emit text up to the first of `markers`, which is consumed and returned; "" at the end.

        No marker may be part of another one, except that the longer of two with the same start wins when it fits.
        """
        first, any_of, longest = _finders(tuple(markers))
        while True:
            text, at = self._text, self._at
            match = any_of.search(text, at) if markers else None
            if match is not None:
                start, marker = match.start(), match.group()
                rest = text[start : start + longest]
                longer = [m for m in markers if len(m) > len(marker) and len(rest) < len(m) and m.startswith(rest)]
                if self.closed or not longer:
                    if start > at:
                        emit(self._take(start - at))
                    self._take(len(marker))
                    return marker
                held = len(text) - start
            else:
                held = _held(text, max(at, len(text) - longest + 1), markers, first) if markers else 0
                if self.closed and not self.cut:
                    held = 0
            if self._left > held:
                emit(self._take(self._left - held))
            if self.closed:
                self._take(held)
                return ""
            yield

    def text_until(self, *markers: str) -> Reading[tuple[str, str]]:
        """The text before the first of `markers`, and the marker ("" at the end)."""
        pieces: list[str] = []
        marker = yield from self.until(markers, pieces.append)
        return "".join(pieces), marker

    def value(self, emit: Emit) -> Reading[bool]:
        """Emit a JSON value as it is written; False where it does not end. Checks brackets and strings only."""
        yield from self.space()
        if (yield from self.char()) not in ("{", "[", '"'):
            return (yield from self._scalar(emit))
        depth, quoted, escaped = 0, False, False
        while True:
            if not (yield from self.char()):
                return False
            text, n = self._text, self._at + escaped
            escaped = False
            while (match := (_QUOTED if quoted else _STRUCTURE).search(text, n)) is not None:
                char, n = match.group(), match.end()
                if char == "\\":
                    escaped = n == len(text)
                    n += 1
                elif char == '"':
                    quoted = not quoted
                else:
                    depth += 1 if char in "{[" else -1
                if depth == 0 and not quoted:
                    emit(self._take(n - self._at))
                    return True
            emit(self._take(self._left))

    def _scalar(self, emit: Emit) -> Reading[bool]:
        some = False
        while (yield from self.char()):
            end = _SCALAR_END.search(self._text, self._at)
            n = self._left if end is None else end.start() - self._at
            if n == 0:
                return some
            some = True
            emit(self._take(n))
        return some

    def json_text(self) -> Reading[str]:
        """A JSON value as text; "" where it does not end."""
        pieces: list[str] = []
        whole = yield from self.value(pieces.append)
        return "".join(pieces) if whole else ""


@lru_cache(256)
def _finders(markers: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str], int]:
    """What finds the first character of a marker, and a whole one (the longest at its place); the longest's length."""
    by_length = sorted(markers, key=len, reverse=True)
    firsts = "".join(dict.fromkeys(marker[0] for marker in markers))
    first = re.compile(f"[{re.escape(firsts)}]" if firsts else "(?!)")
    return first, re.compile("|".join(map(re.escape, by_length)) or "(?!)"), max(map(len, markers), default=0)


def _held(text: str, start: int, markers: Sequence[str], first: re.Pattern[str]) -> int:
    """How many characters at the end of `text`, from `start` on, could begin a marker."""
    while (match := first.search(text, start)) is not None:
        if any(marker.startswith(text[match.start() :]) for marker in markers):
            return len(text) - match.start()
        start = match.end()
    return 0
