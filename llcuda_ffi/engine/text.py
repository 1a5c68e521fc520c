"""Token bytes to text, as they come: whole UTF-8 characters only, and nothing of a stop string."""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Sequence


class StopStrings:
    """Finds the first of several texts in a text that comes in pieces.

    Each has the automaton of Knuth, Morris and Pratt, so that a character costs the same however long the texts are.

    Attributes:
        held: how many characters at the end of the text so far may be the beginning of one.
    """

    __slots__ = ("_begin", "_borders", "_by_first", "_matched", "_stops", "held")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._by_first: dict[str, list[int]] = {}
        for i, stop in enumerate(self._stops):
            self._by_first.setdefault(stop[0], []).append(i)
        self._begin = re.compile(f"[{re.escape(''.join(self._by_first))}]").search
        # for each stop and each length n from 1: the length of the longest beginning of stop[:n] that also ends it
        self._borders: list[list[int]] = [[0] for _ in self._stops]
        self._matched: dict[int, int] = {}  # stops of which a beginning ends the text, and its length
        self.held = 0

    def feed(self, text: str) -> tuple[int, int] | None:
        """Go on with `text`. Where a stop string is complete: where it ends in `text`, and its length.

        The one that is complete first counts; of those that end together the longest.
        """
        matched, at, stops = self._matched, 0, self._stops
        while at < len(text):
            if not matched:
                begin = self._begin(text, at)
                if begin is None:
                    break
                at = begin.start()
            char, at = text[at], at + 1
            going, found = {}, 0
            for i, before in matched.items():
                stop, n = stops[i], before
                while n and stop[n] != char:
                    n = self._border(i, n)
                if stop[n] == char:
                    going[i] = n + 1
                    if n + 1 == len(stop):
                        found = max(found, n + 1)
            for i in self._by_first.get(char, ()):
                if i not in matched:
                    going[i] = 1
                    if len(stops[i]) == 1:
                        found = max(found, 1)
            matched = going
            if found:
                return at, found
        self._matched = matched
        self.held = max(matched.values(), default=0)
        return None

    def _border(self, i: int, n: int) -> int:
        """The border of the first `n` characters of stop `i`; the table grows as far as it is asked."""
        stop, borders = self._stops[i], self._borders[i]
        while len(borders) < n:
            char, k = stop[len(borders)], borders[-1]
            while k and stop[k] != char:
                k = borders[k - 1]
            borders.append(k + (stop[k] == char))
        return borders[n - 1]


class TextStream:
    """The text of one completion, from the bytes of its tokens.

    Bytes that are no UTF-8 show as U+FFFD. An unfinished character at the end is no text: what would finish it may
    come with the next token, or was cut.

    Attributes:
        stop: the stop string that was found, None where none was; the text then ends before it, or with it where
            `include` is set.
    """

    __slots__ = ("_at_least", "_bytes", "_held", "_include", "_parts", "_stops", "_taken", "stop")

    def __init__(self, stops: Sequence[str], *, include: bool = False, at_least: int = 0, before: str = "") -> None:
        """
        Args:
            stops: texts that end it.
            include: keep the stop string.
            at_least: stop strings do not begin in the text of the first `at_least` - 1 tokens.
            before: what it begins with; no stop string begins in it either.
        """
        self._stops = StopStrings(stops) if stops else None
        self._include, self._at_least = include, at_least
        self._bytes = b""  # of an unfinished character
        self._held = ""  # may begin a stop string
        self._parts = [before] if before else []  # can be shown
        self._taken = 0  # of the parts
        self.stop: str | None = None

    def push(self, piece: bytes) -> bool:
        """Add the bytes of the next token; returns whether a stop string is now complete."""
        if self._bytes:
            piece = self._bytes + piece
        text, used = utf_8_decode(piece, "replace", False)
        self._bytes = piece[used:]
        stops = self._stops
        if stops is None or self._at_least > 1:
            self._at_least -= 1
            self._parts.append(text)
            return False
        found = stops.feed(text)
        if found is not None:
            end, length = found
            text, self._held = self._held + text[:end], ""
            self.stop = text[-length:]
            if not self._include:
                text = text[:-length]
        elif stops.held:
            text = self._held + text
            text, self._held = text[: -stops.held], text[-stops.held :]
        elif self._held:
            text, self._held = self._held + text, ""
        self._parts.append(text)
        return self.stop is not None

    def take(self, *, final: bool = False) -> str:
        """The new text that can be shown; what may begin a stop string is held back until `final`."""
        if final and self._held:
            self._parts.append(self._held)
            self._held = ""
        parts, taken = self._parts, self._taken
        self._taken = n = len(parts)
        return parts[taken] if n == taken + 1 else "".join(parts[taken:])

    @property
    def text(self) -> str:
        """The whole text so far."""
        return "".join(self._parts) + self._held
