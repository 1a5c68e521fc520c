"""Token bytes to text, as they come: whole UTF-8 characters only, and nothing of a stop string."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from ..sampling_params import SamplingParams


class TextStream:
    """Collects the bytes of one completion.

    Attributes:
        stopped: whether a stop string was found; the text then ends before it, or after it with `include`.
        stop: the stop string that was found.
        data: the bytes so far, up to a stop string.
    """

    __slots__ = ("_at_least", "_from", "_include", "_longest", "_sent", "_stops", "data", "stop", "stopped")

    def __init__(
        self, stops: Sequence[str] | None, *, include: bool = False, at_least: int = 0, before: bytes = b""
    ) -> None:
        """
        Args:
            stops: texts that end it.
            include: keep the stop string.
            at_least: stop strings are not looked for in the text of so many tokens.
            before: what it begins with; not looked into either.
        """
        self._stops = tuple(stop.encode("utf-8", "surrogatepass") for stop in stops or ())
        self._longest = max(map(len, self._stops), default=0)
        self._include, self._at_least = include, at_least
        self._sent = 0
        self._from = len(before)
        self.data = bytearray(before)
        self.stopped = False
        self.stop: str | None = None

    @classmethod
    def of(cls, params: SamplingParams, before: bytes = b"") -> TextStream:
        """As a request's settings say."""
        return cls(params.stop, include=params.include_stop_str_in_output, at_least=params.min_tokens, before=before)

    def push(self, piece: bytes) -> bool:
        """Add the bytes of a token; returns whether a stop string is now complete."""
        data = self.data
        start = len(data)
        data += piece
        if self._at_least > 1:  # the last of so many tokens may be the end
            self._at_least -= 1
            self._from = len(data)
        elif self._longest:
            first, found = -1, b""
            for stop in self._stops:
                at = data.find(stop, max(self._from, start - len(stop) + 1))
                if at >= 0 and (first < 0 or at < first):
                    first, found = at, stop
            if first >= 0:
                del data[first + (len(found) if self._include else 0) :]
                self.stopped, self.stop = True, found.decode("utf-8", "surrogatepass")
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
