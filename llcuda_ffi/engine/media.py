"""Prompts with images and sounds: where embeddings stand in place of tokens, and how they are computed.

In the prompt's token ids a piece of an image is a run of negative numbers made of its content: equal images are equal
runs, so the prefix cache works on them as on tokens. Such runs of all requests that have come to one are computed in a
batch of their own, at most one micro-batch a step, so that running streams wait no longer for it than for a part of
another prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.context import Context
from ..core.embedding_batch import EmbeddingBatch

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """Embeddings in a prompt.

    Attributes:
        start: where its first stands among the prompt's tokens.
        embeddings: float32 (n, n_embd_inp).
        positions: int32 (4, n) from 0 with M-RoPE, else None.
        n_pos: positions that it takes; n without M-RoPE.
        whole: it must be computed in one piece.
    """

    start: int
    embeddings: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int32] | None
    n_pos: int
    whole: bool

    @property
    def stop(self) -> int:
        """Where the token after it stands."""
        return self.start + len(self.embeddings)


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """A prompt with media, as `Llama.generate` takes it.

    Attributes:
        tokens: int32 token ids, negative where embeddings stand.
        spans: these, in order.
        text: the prompt with a word in place of each medium.
    """

    tokens: Tokens
    spans: tuple[MediaSpan, ...]
    text: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, n: int) -> MediaSpan | None:
        """The span that the token at `n` is of."""
        return next((span for span in self.spans if span.start <= n < span.stop), None)

    def text_until(self, n: int) -> int:
        """Up to where tokens follow each other from `n` on; `n` where an embedding stands there."""
        return next((max(n, span.start) for span in self.spans if span.stop > n), len(self.tokens) + (1 << 30))

    def moved(self, n: int) -> int:
        """How far positions are from tokens after the first `n`."""
        return sum(span.n_pos - len(span.embeddings) for span in self.spans if span.stop <= n)

    def cut(self, n: int) -> int:
        """The most of the first `n` tokens after which computing can go on, and a memory can tell that it has them.

        With M-RoPE that is no place in an image or right after it: the highest position there is the image's first.
        """
        for span in reversed(self.spans):
            inside = span.start < n <= span.stop if span.positions is not None else span.start < n < span.stop
            if inside and (span.whole or span.positions is not None):
                n = span.start
        return n


def placeholders(content: bytes, n: int) -> Tokens:
    """Negative ids for n embeddings of a content: equal for equal contents, else different."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
    return -np.random.default_rng(seed).integers(2, 1 << 31, n, dtype=np.int64).astype(np.int32)


@dataclass(frozen=True, slots=True)
class MediaPiece:
    """Where a request stands that has come to an image: its prompt, how many tokens are computed, its sequence."""

    prompt: MediaPrompt
    n_past: int
    seq_id: int


class MediaDecoder:
    """Computes the embeddings of one context's requests."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def compute(self, pieces: Sequence[MediaPiece]) -> list[int]:
        """Compute the next part of each request's span, as far as they go into one micro-batch.

        Args:
            pieces: the most urgent first. What must be computed whole is computed alone.

        Returns:
            how many embeddings were computed of each of the first pieces.

        Raises:
            DecodeError, InvalidRequest: as `Context.decode`.
        """
        room = self._context.n_ubatch
        counts: list[int] = []
        rows, positions, seqs = [], [], []
        whole = False
        for piece in pieces:
            span = piece.prompt.at(piece.n_past)
            assert span is not None
            if counts and (span.whole or whole or not room):
                break
            whole = span.whole
            first = piece.n_past - span.start
            left = len(span.embeddings) - first
            stop = first + (left if whole else min(left, room))
            begin = np.int32(span.start + piece.prompt.moved(piece.n_past))
            places = np.arange(len(span.embeddings), dtype=np.int32) if span.positions is None else span.positions
            rows.append(span.embeddings[first:stop])
            positions.append(places[..., first:stop] + begin)
            seqs.append(np.full(stop - first, piece.seq_id, np.int32))
            counts.append(stop - first)
            room -= stop - first
        batch = EmbeddingBatch(np.concatenate(rows), np.concatenate(positions, axis=-1), np.concatenate(seqs))
        self._context.decode_embeddings(batch, causal=not whole)
        return counts
