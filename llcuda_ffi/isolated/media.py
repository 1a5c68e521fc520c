"""Images, sounds and their embeddings between two processes: a description in JSON, and the bytes of the arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.projector import Image, MediaChunk, Sound, TextPart, TokenChunk
from ..engine.media import MediaPrompt, MediaSpan
from ..errors import BackendFailure, InvalidRequest
from .channel import MOST_BYTES

_DTYPES = ("|u1", "<f4", "<i4")

Encode = Callable[[Image | Sound], list[TokenChunk | MediaChunk]]


class RemoteProjector:
    """The projector of a Llama whose engine is in another process; has what MediaEncoder asks of core.Projector.

    Attributes:
        path: its file.
        sees, hears: what it takes.
        sample_rate: of sound, in Hz; 0 where it does not hear.
    """

    def __init__(self, encode: Encode, n_tokens: int, path: str, sees: bool, hears: bool, sample_rate: int) -> None:
        """
        Args:
            encode: has the child encode one medium.
            n_tokens: of the vocabulary.
        """
        self._encode, self._n_tokens = encode, n_tokens
        self.path, self.sees, self.hears, self.sample_rate = Path(path), sees, hears, sample_rate

    def encode(
        self, parts: Sequence[TextPart | Image | Sound], *, add_special: bool = True
    ) -> list[TokenChunk | MediaChunk]:
        """As Projector.encode, of one medium without special tokens around it.

        Raises:
            InvalidRequest: it does not take that medium.
            BackendFailure: the encoder failed, or its process ended.
        """
        [medium] = parts
        if isinstance(medium, TextPart) or add_special:
            raise InvalidRequest("with isolate=True a projector encodes one image or sound at a time")
        found = self._encode(medium)
        for chunk in found:
            ids = chunk.tokens if isinstance(chunk, TokenChunk) else ()
            if len(ids) and not 0 <= min(ids) <= max(ids) < self._n_tokens:
                raise BackendFailure("the engine's process gave tokens that the vocabulary lacks")
        return found


def medium_out(medium: Image | Sound) -> tuple[Any, bytes]:
    """A medium as a description and bytes."""
    return _out([medium.pixels if isinstance(medium, Image) else medium.samples])


def medium_back(described: Any, raw: bytes) -> Image | Sound:
    """The medium again."""
    [array] = _back(described, raw)
    return Image(array) if array.dtype == np.uint8 else Sound(array)


def chunks_out(chunks: Sequence[TokenChunk | MediaChunk]) -> tuple[Any, bytes]:
    """What a medium became, as a description and bytes.

    Raises:
        InvalidRequest: it is more than a message holds.
    """
    described: list[Any] = []
    arrays: list[npt.NDArray[Any]] = []
    for chunk in chunks:
        if isinstance(chunk, TokenChunk):
            described.append(None)
            arrays.append(chunk.tokens)
            continue
        described.append([*chunk.media, chunk.n_pos, chunk.whole, chunk.positions is not None])
        arrays += [chunk.embeddings] if chunk.positions is None else [chunk.embeddings, chunk.positions]
    shapes, raw = _out(arrays)
    return [described, shapes], raw


def chunks_back(value: Any, raw: bytes) -> list[TokenChunk | MediaChunk]:
    """The chunks again.

    Raises:
        ValueError, TypeError: it is nothing that `chunks_out` makes.
    """
    described, shapes = value
    arrays = iter(_back(shapes, raw))
    found: list[TokenChunk | MediaChunk] = []
    for one in described:
        array = next(arrays, None)
        if one is None:
            if array is None or array.dtype != np.int32 or array.ndim != 1:
                raise ValueError("no tokens")
            found.append(TokenChunk(array))
            continue
        medium, number, n_pos, whole, placed = one
        positions = next(arrays, None) if placed else None
        if placed and positions is None:
            raise ValueError("no positions")
        _check_span(array, positions, n_pos)
        found.append(MediaChunk((int(medium), int(number)), array, positions, n_pos, bool(whole)))  # type: ignore[arg-type]
    return found


def prompt_out(prompt: MediaPrompt) -> tuple[Any, bytes]:
    """A prompt's spans as a description and bytes; its tokens and its text are sent as those of others.

    Raises:
        InvalidRequest: it is more than a message holds.
    """
    described: list[Any] = []
    arrays: list[npt.NDArray[Any]] = []
    for span in prompt.spans:
        described.append([span.start, span.n_pos, span.whole, span.positions is not None])
        arrays += [span.embeddings] if span.positions is None else [span.embeddings, span.positions]
    shapes, raw = _out(arrays)
    return [described, shapes, prompt.text], raw


def prompt_back(tokens: Sequence[int], value: Any, raw: bytes) -> MediaPrompt:
    """The prompt again."""
    described, shapes, text = value
    arrays = iter(_back(shapes, raw))
    spans = [
        MediaSpan(start, next(arrays), next(arrays) if placed else None, n_pos, whole)
        for start, n_pos, whole, placed in described
    ]
    return MediaPrompt(np.array(tokens, np.int32), tuple(spans), text)


def _check_span(embeddings: Any, positions: Any, n_pos: Any) -> None:
    if embeddings is None or embeddings.dtype != np.float32 or embeddings.ndim != 2:
        raise ValueError("no embeddings")
    if positions is not None and (positions.dtype != np.int32 or positions.shape != (4, len(embeddings))):
        raise ValueError("no positions")
    if type(n_pos) is not int or not 0 < n_pos <= len(embeddings):
        raise ValueError("no number of positions")


def _out(arrays: Sequence[npt.NDArray[Any]]) -> tuple[list[Any], bytes]:
    size = sum(array.nbytes for array in arrays)
    if size > MOST_BYTES:
        raise InvalidRequest(f"with isolate=True images and sounds of a prompt take at most {MOST_BYTES} bytes")
    return [[array.dtype.str, array.shape] for array in arrays], b"".join(array.tobytes() for array in arrays)


def _back(shapes: Any, raw: bytes) -> list[npt.NDArray[Any]]:
    found, start = [], 0
    for kind, shape in shapes:
        if kind not in _DTYPES or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("no array")
        count = 1
        for n in shape:
            count *= n
        stop = start + count * np.dtype(kind).itemsize
        if stop > len(raw):
            raise ValueError("an array of more bytes than there are")
        found.append(np.frombuffer(raw, kind, count, start).reshape(shape))
        start = stop
    if start != len(raw):
        raise ValueError("bytes that belong to no array")
    return found
