"""From texts, images and sounds to one prompt: each medium is encoded once and kept by its content, within a budget.

What was given as a file is known again by its bytes, so the next turn of a conversation does not decode it either.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..core.projector import Image, MediaChunk, Sound, TextPart, TokenChunk
from ..engine.media import MediaPrompt, MediaSpan, placeholders
from ..errors import InvalidRequest
from .media import Base64, file_bytes, read_image, read_sound

Tokens = npt.NDArray[np.int32]

CACHE_BYTES = 256 << 20
_MOST_NAMES = 4096

Chunks = list[TokenChunk | MediaChunk]


class MediaProjector(Protocol):
    """What encodes: a core.Projector, or one of another process."""

    path: Path
    sees: bool
    hears: bool
    sample_rate: int

    def encode(self, parts: Sequence[TextPart | Image | Sound], *, add_special: bool = True) -> Chunks: ...


@dataclass(frozen=True, slots=True)
class Medium:
    """An image or a sound on its way into a prompt.

    Attributes:
        key: the hash of its pixels or samples.
        content: these; None where it is known what it became.
        chunks: what it became; None where it is still to be encoded.
    """

    key: bytes
    content: Image | Sound | None
    chunks: Chunks | None = None


class MediaEncoder:
    """Encodes media for one text model. Any thread may use it; one encodes at a time.

    Attributes:
        projector: the loaded mmproj file.
        hits, misses: media that were found in the cache, and encoded.
    """

    def __init__(self, projector: MediaProjector, cache_bytes: int = CACHE_BYTES) -> None:
        self.projector = projector
        self.hits = self.misses = 0
        self._budget, self._size = cache_bytes, 0
        self._kept: OrderedDict[bytes, Chunks] = OrderedDict()
        self._names: OrderedDict[bytes, bytes] = OrderedDict()  # the hash of a file: the key of what it holds
        self._lock, self._encoding = threading.Lock(), threading.Lock()

    def read(self, kind: str, value: Any) -> Medium:
        """An image or a sound; `kind` is "image" or "audio".

        Raises:
            InvalidRequest, MissingExtra: see media.py; or the projector does not take it.
        """
        if isinstance(value, Medium):
            return value
        if not (self.projector.sees if kind == "image" else self.projector.hears):
            raise InvalidRequest(f"{self.projector.path.name} takes no {'images' if kind == 'image' else 'sound'}")
        value = file_bytes(value, "image" if kind == "image" else "sound")
        name = _name(kind, value)
        with self._lock:
            key = None if name is None else self._names.get(name)
            found = None if key is None else self._kept.get(key)
            if name is not None and key is not None and found is not None:
                self._names.move_to_end(name)
                return Medium(key, None, found)
        content = read_image(value) if kind == "image" else read_sound(value, self.projector.sample_rate)
        key = _key(content)
        if name is not None:
            with self._lock:
                self._names[name] = key
                if len(self._names) > _MOST_NAMES:
                    self._names.popitem(last=False)
        return Medium(key, content)

    def encode(self, medium: Medium) -> Medium:
        """A medium with what it becomes: from what was kept, or by the projector.

        Raises:
            InvalidRequest: the projector does not take it.
            BackendFailure: the encoder failed.
        """
        found = self._known(medium)
        if found is not None:
            return found
        with self._encoding:  # who waited here for another's encoding of the same medium takes that
            found = self._known(medium)
            if found is not None:
                return found
            assert medium.content is not None
            made = self.projector.encode([medium.content], add_special=False)
            key, size = medium.key, _size(made)
            with self._lock:
                self.misses += 1
                if size <= self._budget:
                    self._kept[key] = made
                    self._size += size
                while self._size > self._budget:
                    self._size -= _size(self._kept.popitem(last=False)[1])
        return Medium(key, None, made)

    def _known(self, medium: Medium) -> Medium | None:
        with self._lock:
            kept = self._kept.get(medium.key)
            if kept is not None:
                self._kept.move_to_end(medium.key)
            found = medium.chunks or kept
            if found is None:
                return None
            self.hits += 1
        return Medium(medium.key, None, found)

    def prompt(self, parts: Sequence[Tokens | Medium], text: str) -> MediaPrompt:
        """A prompt of token ids and media, in order.

        Args:
            parts: int32 token ids (n,), images and sounds.
            text: the prompt as text.

        Raises:
            InvalidRequest: a medium cannot be encoded, or the prompt ends with one.
            BackendFailure: the encoder failed.
        """
        if not parts or not isinstance(parts[-1], np.ndarray) or not len(parts[-1]):
            raise InvalidRequest("a prompt must not end with an image or a sound: add the text to go on from")
        tokens: list[Tokens] = []
        spans: list[MediaSpan] = []
        n = 0
        for part in parts:
            if isinstance(part, np.ndarray):
                tokens.append(part)
                n += len(part)
                continue
            medium = self.encode(part) if part.chunks is None else part
            for chunk in medium.chunks or ():
                if isinstance(chunk, TokenChunk):
                    tokens.append(chunk.tokens)
                    n += len(chunk.tokens)
                    continue
                count = len(chunk.embeddings)
                tokens.append(placeholders(medium.key + repr(chunk.media).encode(), count))
                spans.append(MediaSpan(n, chunk.embeddings, chunk.positions, chunk.n_pos, chunk.whole))
                n += count
        return MediaPrompt(np.concatenate(tokens), tuple(spans), text)


def _name(kind: str, value: Any) -> bytes | None:
    """The hash of a file as it was given; None for pixels and samples."""
    if isinstance(value, Base64):
        value = value.text
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    if not isinstance(value, bytes):
        return None
    return hashlib.sha256(kind.encode() + value).digest()


def _key(content: Image | Sound) -> bytes:
    array = content.pixels if isinstance(content, Image) else content.samples
    digest = hashlib.sha256(repr((array.shape, type(content).__name__)).encode())
    digest.update(array.data)
    return digest.digest()


def _size(chunks: Chunks) -> int:
    return sum(chunk.embeddings.nbytes for chunk in chunks if isinstance(chunk, MediaChunk))
