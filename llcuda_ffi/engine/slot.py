"""A slot: one sequence of the context, and the request that has it."""

from __future__ import annotations

import enum
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from .media import MediaPiece
from .request import Request

_NOTHING: npt.NDArray[np.int32] = np.empty(0, np.int32)


class State(enum.Enum):
    """What a slot is doing."""

    IDLE = "idle"
    PROMPT = "prompt"
    GENERATING = "generating"


class Slot:
    """Sequence `index` of the context.

    Attributes:
        state: IDLE, PROMPT (its prompt is being computed) or GENERATING.
        request: whose it is, None when idle.
        pending_tokens: while PROMPT, all tokens to be computed; `n_past` of them are.
        n_past: tokens in the KV cache.
        moved: how far its positions are from its tokens: an image of an M-RoPE model takes fewer.
        cached_tokens: those that the KV cache holds and that other requests may reuse.
        last: the token to be computed next while GENERATING, after `run`.
        run: tokens before it that are accepted but not computed: a constraint left no choice.
        draft: tokens proposed to follow `last`.
        sampled: the next token where it was sampled ahead of its turn, else -1.
        scored, n_scored: the batch row from which on its prompt's next n_scored tokens have logits, else -1.
        key: what `cached_tokens` were computed with (`PrefixCache.key`).
        before: how many tokens the memory held before the drafts of the last batch, and its state then, where it cannot
            be rolled back.
        marks: whether checkpoints of its prompt are kept; `marked` is where the last one is.
        wanted: lengths of its prompt after which a checkpoint is to be kept, ascending.
        used: when it was last used, in steps.
    """

    __slots__ = (
        "before",
        "cached_tokens",
        "draft",
        "index",
        "key",
        "last",
        "marked",
        "marks",
        "moved",
        "n_past",
        "n_scored",
        "pending_tokens",
        "request",
        "run",
        "sampled",
        "scored",
        "shared",
        "state",
        "used",
        "wanted",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.used = 0
        self.cached_tokens = _NOTHING
        self.key: Hashable = None
        self.before: tuple[int, memoryview] | None = None
        self.reset()

    def reset(self) -> None:
        """Become idle; `cached_tokens` stay."""
        self.state = State.IDLE
        self.request: Request | None = None
        self.pending_tokens = _NOTHING
        self.n_past = self.moved = 0
        self.wanted: list[int] = []
        self.marks, self.marked = False, 0
        self.last = self.sampled = self.scored = -1
        self.n_scored = 0
        self.run: list[int] = []
        self.draft: list[int] = []
        self.shared = 0  # after a context shift, how many tokens at the start still match their positions

    def forget(self) -> None:
        """What was kept is gone."""
        self.before = None
        self.cached_tokens = _NOTHING
        self.used = 0  # empty slots are alike: the next request's place does not hang on what was

    def media_piece(self, mixes: bool) -> MediaPiece | None:
        """Where its prompt has come to an image or a sound that is computed apart; None where it has not.

        Args:
            mixes: whether embeddings may stand beside tokens.
        """
        media = None if self.request is None else self.request.media
        if self.state is not State.PROMPT or media is None:
            return None
        span = media.at(self.n_past)
        return None if span is None or (mixes and not span.whole) else MediaPiece(media, self.n_past, self.index)

    def reach(self, n: int) -> None:
        """The first n tokens of its prompt are computed."""
        self.n_past = n
        if self.request is not None and self.request.media is not None:
            self.moved = self.request.media.moved(n)

    def arrival(self) -> int:
        """The place in the order of arrival of its request."""
        assert self.request is not None
        return self.request.place.number
