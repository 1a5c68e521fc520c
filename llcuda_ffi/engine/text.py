"""Token bytes to text, as they come: whole UTF-8 characters only, and nothing of a stop string."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence


class TextStream:
    """Collects the bytes of one completion.

    Attributes:
        stopped: whether a stop string was found; the text then ends before it.
        data: the bytes so far, up to a stop string.
    """

    __slots__ = ("_longest", "_sent", "_stops", "data", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop.encode("utf-8", "surrogatepass") for stop in stops)
        self._longest = max(map(len, self._stops), default=0)
        self._sent = 0
        self.data = bytearray()
        self.stopped = False

    def push(self, piece: bytes) -> bool:
        """Add the bytes of a token; returns whether a stop string is now complete."""
        data = self.data
        start = len(data)
        data += piece
        if self._longest:
            first = -1
            for stop in self._stops:
                at = data.find(stop, max(0, start - len(stop) + 1))
                if at >= 0 and (first < 0 or at < first):
                    first = at
            if first >= 0:
                del data[first:]
                self.stopped = True
        return self.stopped

    def take(self, *, final: bool = False) -> str:
        """The new text that can be shown. Held back until `final`: half a character, a possible start of a stop."""
        data, sent = self.data, self._sent
        end = len(data)
        if self._longest and not final and not self.stopped:
            end -= self._held(data)
        if end <= sent:
            return ""
        text, used = utf_8_decode(data[sent:end], "replace", final)
        self._sent = sent + used
        return text

    def _held(self, data: bytearray) -> int:
        """How many bytes at the end could begin a stop string."""
        for n in range(min(self._longest - 1, len(data)), 0, -1):
            tail = bytes(data[-n:])
            if any(stop.startswith(tail) for stop in self._stops):
                return n
        return 0

    @property
    def text(self) -> str:
        """The whole text so far; an unfinished character at its end shows as U+FFFD."""
        return self.data.decode("utf-8", "replace")
