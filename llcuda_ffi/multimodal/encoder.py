"""From texts, images and sounds to one prompt: each medium is encoded once and kept by its content, within a budget."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..core.projector import Image, MediaChunk, Sound, TextPart, TokenChunk
from ..engine.media import MediaPrompt, MediaSpan, placeholders
from ..errors import InvalidRequest
from .media import read_image, read_sound

Tokens = npt.NDArray[np.int32]

CACHE_BYTES = 256 << 20


class MediaProjector(Protocol):
    """What encodes: a core.Projector, or one of another process."""

    path: Path
    sees: bool
    hears: bool
    sample_rate: int

    def encode(
        self, parts: Sequence[TextPart | Image | Sound], *, add_special: bool = True
    ) -> list[TokenChunk | MediaChunk]: ...


class EncodedMedium(NamedTuple):
    """What a medium became, and the hash of its content."""

    key: bytes
    chunks: list[TokenChunk | MediaChunk]


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
        self._kept: OrderedDict[bytes, list[TokenChunk | MediaChunk]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, kind: str, value: Any) -> Image | Sound:
        """An image or a sound as pixels or samples; `kind` is "image" or "audio".

        Raises:
            InvalidRequest, MissingExtra: see media.py; or the projector does not take it.
        """
        if kind == "image":
            if not self.projector.sees:
                raise InvalidRequest(f"{self.projector.path.name} takes no images")
            return read_image(value)
        if not self.projector.hears:
            raise InvalidRequest(f"{self.projector.path.name} takes no sound")
        return read_sound(value, self.projector.sample_rate)

    def encode(self, medium: Image | Sound) -> EncodedMedium:
        """What a medium becomes: from what was kept, or by the projector.

        Raises:
            InvalidRequest: the projector does not take it.
            BackendFailure: the encoder failed.
        """
        array = medium.pixels if isinstance(medium, Image) else medium.samples
        digest = hashlib.sha256(repr((array.shape, type(medium).__name__)).encode())
        digest.update(array.data)
        key = digest.digest()
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                self.hits += 1
                return EncodedMedium(key, found)
        made = self.projector.encode([medium], add_special=False)
        size = sum(chunk.embeddings.nbytes for chunk in made if isinstance(chunk, MediaChunk))
        with self._lock:
            self.misses += 1
            if key not in self._kept and size <= self._budget:
                self._kept[key] = made
                self._size += size
                while self._size > self._budget:
                    _, old = self._kept.popitem(last=False)
                    self._size -= sum(chunk.embeddings.nbytes for chunk in old if isinstance(chunk, MediaChunk))
        return EncodedMedium(key, made)

    def prompt(self, parts: Sequence[Tokens | Image | Sound | EncodedMedium], text: str) -> MediaPrompt:
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
            key, chunks = part if isinstance(part, EncodedMedium) else self.encode(part)
            for chunk in chunks:
                if isinstance(chunk, TokenChunk):
                    tokens.append(chunk.tokens)
                    n += len(chunk.tokens)
                    continue
                count = len(chunk.embeddings)
                tokens.append(placeholders(key + repr(chunk.media).encode(), count))
                spans.append(MediaSpan(n, chunk.embeddings, chunk.positions, chunk.n_pos, chunk.whole))
                n += count
        return MediaPrompt(np.concatenate(tokens), tuple(spans), text)
