"""Log probabilities in the forms of OpenAI's older completions and of its chats."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from ..engine.results import TokenLogprob


def token_text(piece: bytes) -> str:
    """What a token writes; for one that is no whole text its bytes, as OpenAI writes them."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class CompletionLogprobs:
    """Writes the `logprobs` of one completion, whole or in the pieces of a stream, whose offsets go on."""

    def __init__(self, start: int = 0) -> None:
        """Begin at an offset: that of an echoed prompt's end."""
        self._at = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def to_dict(self, entries: Sequence[TokenLogprob | None] | None, pieces: Sequence[bytes] = ()) -> Any:
        """`tokens`, `token_logprobs`, `top_logprobs` and `text_offset` of the next tokens; None for None.

        Args:
            entries: one for each token; None for a prompt's first token, which has no probability.
            pieces: what those without an entry write.
        """
        if entries is None:
            return None
        rest = iter(pieces)
        out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            piece = next(rest, b"") if entry is None else entry.bytes
            out["tokens"].append(token_text(piece))
            out["token_logprobs"].append(None if entry is None else entry.logprob)
            out["top_logprobs"].append(None if entry is None else self._tops(entry))
            if not 0x80 <= (piece or b"\x80")[0] < 0xC0:  # it does not go on with a character that was begun
                self._at += len(self._decoder.decode(b"", True))
            out["text_offset"].append(self._at)
            self._at += len(self._decoder.decode(piece))
        return out

    def _tops(self, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and the chosen one, which OpenAI always adds."""
        tops: dict[str, float] = {}
        for (_, value), piece in zip(entry.top, entry.top_bytes, strict=True):
            tops.setdefault(token_text(piece), value)
        tops.setdefault(token_text(entry.bytes), entry.logprob)
        return tops


def prompt_logprobs(entries: Sequence[TokenLogprob | None] | None) -> list[Any] | None:
    """vLLM's form: for each token of the prompt its likeliest and itself, by token id; None for the first."""

    def one(token: int, piece: bytes, value: float) -> dict[str, Any]:
        return {str(token): {"logprob": value, "decoded_token": piece.decode("utf-8", "replace")}}

    if entries is None:
        return None
    out: list[Any] = []
    for entry in entries:
        found: dict[str, Any] = {}
        if entry is not None:
            found |= one(entry.token, entry.bytes, entry.logprob)
            for (token, value), piece in zip(entry.top, entry.top_bytes, strict=True):
                found |= one(token, piece, value)
        out.append(found or None)
    return out
