"""Speculative decoding: who proposes the next tokens. The scheduler verifies them in the batch that it computes anyway.

Drafters: prompt lookup (the tokens that followed the same n-gram earlier in the request's own text, which costs
nothing), a smaller model with the same vocabulary, and the model's own layers of multi-token prediction (mtp_draft.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..core.batch import Batch
from ..core.context import Context
from ..core.model import Model
from ..core.sampler import SamplerChain
from ..errors import InvalidRequest
from ..params import integer
from .prefix_tree import common_prefix
from .slot import Slot


class Drafter(Protocol):
    """Proposes tokens for generating slots.

    Attributes:
        apart: whether a batch must have outputs only, or one sequence only.
    """

    apart: bool

    def propose(self, slots: Sequence[Slot], room: int) -> None:
        """Set `slot.draft` of each slot; together at most `room` tokens."""

    def computed(self, batch: Batch, slots: Sequence[Slot]) -> None:
        """The model has computed a batch, whose results are still there.

        Args:
            slots: by their sequences; what is in the batch is not counted in `n_past` yet.
        """

    def close(self) -> None:
        """Free what it owns."""


def most_drafts(slot: Slot, n_draft: int, n_ctx: int) -> int:
    """How many tokens may be drafted for a slot: its request and its sequence must have room for them."""
    request = slot.request
    assert request is not None
    if request.media is not None:
        return 0  # tokens of an image are no tokens of a text
    if request.output.constraint is not None or request.params.overflow == "shift":
        return 0  # a constraint is asked token by token; a shift moves positions
    if slot.run:
        return 0  # it computes again what a rejected draft took with it
    return max(0, min(n_draft, request.limit - len(request.output.token_ids) - 1, n_ctx - slot.n_past - 2))


class PromptLookup:
    """Drafts what followed the last n-gram where it stood before, in the prompt or the answer."""

    apart = False

    def __init__(self, n_ctx: int, *, n_draft: int = 8, ngram: int = 3) -> None:
        self._n_ctx = n_ctx
        self._n_draft = integer("n_draft", n_draft, 1, 64)
        self._ngram = integer("ngram", ngram, 1, 16)

    def propose(self, slots: Sequence[Slot], room: int) -> None:
        """See Drafter."""
        for slot in slots:
            n = min(most_drafts(slot, self._n_draft, self._n_ctx), room)
            slot.draft = self._lookup(slot, n) if n > 0 else []
            room -= len(slot.draft)

    def _lookup(self, slot: Slot, n: int) -> list[int]:
        assert slot.request is not None
        tokens = slot.request.tokens()
        for size in range(min(self._ngram, len(tokens) - 1), 0, -1):
            tail = tokens[-size:]
            # starts of earlier n-grams; the last one itself does not count
            found = np.ones(len(tokens) - size, bool)
            for i, token in enumerate(tail):
                found &= tokens[i : len(tokens) - size + i] == token
            starts = np.flatnonzero(found)
            if len(starts):
                at = int(starts[-1]) + size
                return [int(t) for t in tokens[at : at + n]]
        return []

    def computed(self, batch: Batch, slots: Sequence[Slot]) -> None:
        """See Drafter."""

    def close(self) -> None:
        """Nothing to free."""


class DraftModel:
    """Drafts greedily with a smaller model of the same vocabulary, all slots in one batch."""

    apart = False

    def __init__(self, model: Model, target: Context, *, n_draft: int = 5) -> None:
        if model.vocab.n_tokens != target.model.vocab.n_tokens or model.vocab.type != target.model.vocab.type:
            raise InvalidRequest(
                f"the draft model has another vocabulary ({model.vocab.n_tokens} tokens) than the model "
                f"({target.model.vocab.n_tokens}): they must be of one family"
            )
        self.model, self._target, self._threads = model, target, 0
        self._n_ctx = target.n_ctx_seq
        self._n_draft = integer("n_draft", n_draft, 1, 64)
        n_seq = target.n_seq_max
        self._context = Context(
            model,
            n_ctx=self._n_ctx * n_seq,
            n_seq_max=n_seq,
            n_batch=max(512, n_seq),
        )
        assert self._context.memory is not None
        self._memory = self._context.memory
        self._held = [np.empty(0, np.int32) for _ in range(n_seq)]
        self._batch = Batch(max(512, n_seq))
        self._chain = SamplerChain(model).greedy()

    def propose(self, slots: Sequence[Slot], room: int) -> None:
        """See Drafter."""
        wanted = {}
        for slot in slots:
            slot.draft = []
            n = min(most_drafts(slot, self._n_draft, self._n_ctx), room)
            if n > 0:
                wanted[slot] = n
                room -= n
        if not wanted:
            return
        context, chain = self._context, self._chain
        threads = self._target.n_threads
        if threads != self._threads:  # what the thread control gave the target holds for its drafter
            context.set_threads(threads)
            self._threads = threads
        rows = self._catch_up(list(wanted))
        while rows:
            going = []
            for row, slot in rows:
                token = chain.sample(context, row)
                slot.draft.append(token)
                if len(slot.draft) < wanted[slot] and not context.model.vocab.is_eog(token):
                    going.append(slot)
            if not going:
                return
            self._batch.clear()
            for slot in going:
                held = self._held[slot.index]
                self._batch.add(slot.draft[-1], len(held), slot.index, output=True)
                self._held[slot.index] = np.append(held, np.int32(slot.draft[-1]))
            context.decode(self._batch)
            rows = list(enumerate(going))

    def _catch_up(self, slots: Sequence[Slot]) -> list[tuple[int, Slot]]:
        """Bring the draft context to where each slot is; returns the rows of their last tokens."""
        batch, context = self._batch, self._context
        pending = []
        for slot in slots:
            assert slot.request is not None
            tokens = slot.request.tokens()
            shared = min(common_prefix(self._held[slot.index], tokens), len(tokens) - 1)
            if not (self._memory.remove(slot.index, shared) and self._memory.holds(slot.index, shared)):
                self._memory.remove(slot.index)
                shared = 0
            pending.append((slot, tokens, shared))
            self._held[slot.index] = tokens
        # long parts first, alone; what ends each sequence goes into the last batch together
        for slot, tokens, shared in pending:
            stop = len(tokens) - 1
            for start in range(shared, stop, batch.capacity):
                batch.clear()
                batch.extend(tokens[start : min(stop, start + batch.capacity)], start, slot.index, output="none")
                context.decode(batch)
        batch.clear()
        for slot, tokens, _ in pending:
            batch.add(int(tokens[-1]), len(tokens) - 1, slot.index, output=True)
        context.decode(batch)
        return list(enumerate(slots))

    def computed(self, batch: Batch, slots: Sequence[Slot]) -> None:
        """See Drafter."""

    def close(self) -> None:
        """Free the draft context; the model is its owner's."""
        self._chain.close()
        self._context.close()
