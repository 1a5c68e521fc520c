"""Reading a stream that arrives in pieces, so that where it was cut never shows.

A format (see parser.py) is a generator: it consumes text through a Reader and yields when it needs more. Every
decision waits until the text before it is enough to make it, so whole and in any pieces the result is the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
Emit = Callable[[str], object]

_SPACE = " \t\r\n"
_SCALAR_END = ",}] \t\r\n"


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
        record: what was consumed since `start_record`, or None.
    """

    def __init__(self) -> None:
        self._text = ""
        self.closed = False
        self.record: str | None = None

    def feed(self, text: str) -> None:
        """More text has come."""
        self._text += text

    def back(self, text: str) -> None:
        """Put back what was consumed last."""
        self._text = text + self._text

    def start_record(self) -> None:
        """Remember what is consumed from here on, in case it is not what it seems."""
        self.record = ""

    def stop_record(self) -> str:
        """What was consumed since `start_record`; nothing is remembered any more."""
        record, self.record = self.record or "", None
        return record

    def _take(self, n: int) -> str:
        piece, self._text = self._text[:n], self._text[n:]
        if self.record is not None:
            self.record += piece
        return piece

    def char(self) -> Reading[str]:
        """The next character, not consumed; "" at the end."""
        while not self._text and not self.closed:
            yield
        return self._text[:1]

    def literal(self, text: str) -> Reading[bool]:
        """Consume `text` if it comes next."""
        while len(self._text) < len(text) and text.startswith(self._text) and not self.closed:
            yield
        if self._text.startswith(text):
            self._take(len(text))
            return True
        return False

    def comes(self, options: Sequence[str]) -> Reading[bool]:
        """Whether one of `options` comes next; nothing is consumed."""
        while True:
            if self._text.startswith(tuple(options)):
                return True
            if self.closed or not any(option.startswith(self._text) for option in options):
                return False
            yield

    def pattern(self, pattern: re.Pattern[str], most: int) -> Reading[bool]:
        """Consume what `pattern` matches, if it matches within the next `most` characters; waits for them
        all.
        """
        while len(self._text) < most and not self.closed:
            yield
        match = pattern.match(self._text[:most])
        if match:
            self._take(match.end())
        return match is not None

    def space(self) -> Reading[None]:
        """Consume white space."""
        while True:
            rest = self._text.lstrip(_SPACE)
            self._take(len(self._text) - len(rest))
            if rest or self.closed:
                return
            yield

    def until(self, markers: Sequence[str], emit: Emit) -> Reading[str]:
        """Emit text up to the first of `markers`, which is consumed and returned; "" at the end.

        No marker may be part of another one, except that the longer of two with the same start wins when it
        fits.
        """
        while True:
            text = self._text
            found = [(at, -len(marker), marker) for marker in markers if (at := text.find(marker)) >= 0]
            if found:
                at, _, marker = min(found)
                longer = [m for m in markers if len(m) > len(marker) and m.startswith(text[at:])]
                if self.closed or not longer:
                    if at:
                        emit(self._take(at))
                    self._take(len(marker))
                    return marker
                held = len(text) - at
            else:
                held = 0 if self.closed else _held(text, markers)
            if len(text) > held:
                emit(self._take(len(text) - held))
            if self.closed:
                return ""
            yield

    def text_until(self, *markers: str) -> Reading[tuple[str, str]]:
        """The text before the first of `markers`, and the marker ("" at the end)."""
        pieces: list[str] = []
        marker = yield from self.until(markers, pieces.append)
        return "".join(pieces), marker

    def value(self, emit: Emit) -> Reading[bool]:
        """Emit a JSON value as it is written; False where it does not end. Checks brackets and strings
        only.
        """
        yield from self.space()
        first = yield from self.char()
        if first == '"':
            return (yield from self._string(emit))
        if first not in ("{", "["):
            return (yield from self._scalar(emit))
        depth = 0
        while True:
            char = yield from self.char()
            if not char:
                return False
            if char == '"':
                if not (yield from self._string(emit)):
                    return False
                continue
            n, text = 0, self._text
            while n < len(text) and text[n] != '"':
                depth += (text[n] in "{[") - (text[n] in "}]")
                n += 1
                if depth == 0:
                    emit(self._take(n))
                    return True
            emit(self._take(n))

    def _string(self, emit: Emit) -> Reading[bool]:
        emit(self._take(1))
        escaped = False
        while True:
            if not (yield from self.char()):
                return False
            for n, char in enumerate(self._text):
                if escaped:
                    escaped = False
                elif char == "\\":
                    escaped = True
                elif char == '"':
                    emit(self._take(n + 1))
                    return True
            emit(self._take(len(self._text)))

    def _scalar(self, emit: Emit) -> Reading[bool]:
        some = False
        while (yield from self.char()):
            n = next((i for i, c in enumerate(self._text) if c in _SCALAR_END), len(self._text))
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


def _held(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end could begin a marker."""
    longest = 0
    for marker in markers:
        for n in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:n]):
                longest = n
                break
    return longest
