"""Prompts with images and sounds: where embeddings stand in place of tokens, and how they are computed.

In the prompt's token ids a piece of an image is a run of negative numbers made of its content: equal images are equal
runs, so the prefix cache works on them as on tokens. They are part of a step's batch where the library computes
embeddings beside tokens (`Context.mixes_embeddings`). Elsewhere, and where a piece attends to itself both ways, the
runs of all requests that have come to one are computed in a batch of their own, at most one micro-batch a step, so that
running streams wait no longer for it than for a part of another prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.batch import checked_embeddings
from ..core.context import Context
from ..core.embedding_batch import EmbeddingBatch
from ..core.model import Model
from ..errors import InvalidRequest

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

    def check(self, model: Model) -> None:
        """Check that a model can compute it.

        Raises:
            InvalidRequest: spans that do not stand where the tokens say, embeddings of another shape or with numbers
                that are none, positions of another kind, or a token outside the vocabulary.
        """
        text = np.ones(len(self.tokens), bool)
        stop = 0
        for span in self.spans:
            embeddings, places = checked_embeddings(span.embeddings, _places(span))
            if span.start < stop or span.stop >= len(self.tokens) or (self.tokens[span.start : span.stop] >= 0).any():
                raise InvalidRequest("an image's embeddings must stand at tokens below 0, and a text must follow them")
            if embeddings.shape[1] != model.n_embd_inp or (places.ndim == 2) != model.moves_positions:
                raise InvalidRequest(
                    f"embeddings of {embeddings.shape[1]} numbers at {4 if places.ndim == 2 else 1} positions do not "
                    f"fit {model.path.name}, which takes {model.n_embd_inp}"
                )
            first = np.atleast_2d(places)[0]
            most = span.n_pos if places.ndim == 2 else len(embeddings)
            if not 0 < span.n_pos == most <= len(embeddings) or places.max() >= most or (np.diff(first) < 0).any():
                raise InvalidRequest(f"{len(embeddings)} embeddings cannot take {span.n_pos} positions")
            stop = span.stop
            text[span.start : stop] = False
        ids = self.tokens[text]
        if not ids.size or int(ids.min()) < 0 or int(ids.max()) >= model.vocab.n_tokens:
            raise InvalidRequest("a token of the prompt is outside the vocabulary")

    def at(self, n: int) -> MediaSpan | None:
        """The span that the token at `n` is of."""
        return next((span for span in self.spans if span.start <= n < span.stop), None)

    def text_until(self, n: int, mixes: bool) -> int:
        """Up to where one batch may go from `n` on; `n` where an embedding stands there that is computed apart.

        Args:
            mixes: whether embeddings may stand beside tokens.
        """
        apart = (max(n, span.start) for span in self.spans if span.stop > n and (span.whole or not mixes))
        return next(apart, len(self.tokens) + (1 << 30))

    def pieces(self, begin: int, stop: int) -> Iterator[tuple[int, int, MediaSpan | None]]:
        """The tokens from `begin` to `stop` in parts: where each begins and ends, and its span; None: a text."""
        for span in self.spans:
            if span.stop > begin and span.start < stop:
                if begin < span.start:
                    yield begin, span.start, None
                begin, first = min(stop, span.stop), max(begin, span.start)
                yield first, begin, span
        if begin < stop:
            yield begin, stop, None

    def embedded(self, span: MediaSpan, begin: int, stop: int) -> tuple[npt.NDArray[np.float32], Tokens]:
        """The embeddings of a span that stand at the tokens `begin` to `stop`, and their positions."""
        part = slice(begin - span.start, stop - span.start)
        return span.embeddings[part], _places(span)[..., part] + np.int32(span.start + self.moved(span.start))

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


def _places(span: MediaSpan) -> Tokens:
    return np.arange(len(span.embeddings), dtype=np.int32) if span.positions is None else span.positions


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
            n = span.stop - piece.n_past
            stop = piece.n_past + (n if whole else min(n, room))
            embeddings, places = piece.prompt.embedded(span, piece.n_past, stop)
            rows.append(embeddings)
            positions.append(places)
            counts.append(len(embeddings))
            seqs.append(np.full(counts[-1], piece.seq_id, np.int32))
            room -= counts[-1]
        batch = EmbeddingBatch(np.concatenate(rows), np.concatenate(positions, axis=-1), np.concatenate(seqs))
        self._context.decode_embeddings(batch, causal=not whole)
        return counts
