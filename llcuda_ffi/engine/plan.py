"""What the next batch holds: a token for each generating slot, then chunks of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.batch import Batch
from ..core.context import Context
from .slot import Slot, State
from .speculative import Drafter

# a slot, and the batch row of its logits; below 0: minus the tokens of a part of its prompt, which has none
Row = tuple[int, Slot]

# an attribute of an enum class takes longer to look up
_GENERATING, _PROMPT = State.GENERATING, State.PROMPT

# logits of a prompt's tokens that one step may have in memory: 64 MB
_MOST_LOGITS = 1 << 24


class Planner:
    """Fills the batch of one context.

    Attributes:
        batch: the batch, used again for each step.
        most: most tokens of one step.
        n_outputs: rows of the batch that have outputs.
        drafts: whether tokens may be drafted.
        prompting: the slots whose prompts were being computed when the batch was planned.
    """

    def __init__(self, context: Context, drafter: Drafter | None) -> None:
        self.batch = Batch(max(context.n_batch, context.n_seq_max))
        self.most = context.n_batch
        self._chunk = context.n_ubatch
        outputs = max(1, _MOST_LOGITS // max(1, context.n_vocab))
        limit = context.params.n_outputs_max
        self._scored = min(outputs, max(1, limit - context.n_seq_max)) if limit else outputs
        self._drafter = drafter
        self.drafts = drafter is not None
        self.n_outputs = 0
        self.prompting: list[Slot] = []

    def plan(self, slots: Sequence[Slot]) -> list[Row]:
        """Fill the batch; returns the slots in it."""
        batch = self.batch
        batch.n_tokens = self.n_outputs = 0
        generating: list[Slot] = []
        prompting: list[Slot] = []
        tokens, positions, seq_ids, runs = [], [], [], self.drafts
        for slot in slots:
            state = slot.state
            if state is _GENERATING:
                generating.append(slot)
                tokens.append(slot.last)
                positions.append(slot.n_past + slot.moved)
                seq_ids.append(slot.index)
                if slot.run:
                    runs = True
            elif state is _PROMPT:
                prompting.append(slot)
        rows: list[Row]
        if runs:
            rows = self._runs(generating)
        else:
            batch.fill(tokens, positions, seq_ids)
            self.n_outputs = len(generating)
            rows = list(enumerate(generating))
        self.prompting = prompting
        if prompting:
            self._prompts(rows)
        return rows

    def _runs(self, generating: Sequence[Slot]) -> list[Row]:
        """Slots that may have several tokens: a run without choice before `last`, a draft after it."""
        batch, rows = self.batch, []
        if self._drafter is not None:
            # twice: what is not rolled back but computed again comes with a token of its own
            used = 2 * len(generating) + sum(len(slot.run) for slot in generating)
            self._drafter.propose(generating, max(0, min(self.most - used, self._chunk)))
        for slot in generating:
            tokens = [*slot.run, slot.last, *slot.draft]
            start, _ = batch.extend(
                tokens, slot.n_past + slot.moved, slot.index, output="all" if slot.draft else "last"
            )
            rows.append((start + len(slot.run), slot))
            self.n_outputs += len(tokens) if slot.draft else 1
        return rows

    def _prompts(self, rows: list[Row]) -> None:
        """Add chunks of prompts: beside running streams one micro-batch of them, so that those never wait longer."""
        batch = self.batch
        room = min(self.most - batch.n_tokens, self._chunk if batch.n_tokens else self.most)
        for slot in sorted(self.prompting, key=Slot.arrival):
            if room <= 0:
                return
            request = slot.request
            scoring = request is not None and request.scoring
            stop = slot.n_past + (min(room, self._scored) if scoring else room)
            if request is not None and request.media is not None:
                stop = min(stop, request.media.text_until(slot.n_past))
                if stop == slot.n_past:
                    continue  # an image: see media.py
            chunk = slot.pending_tokens[slot.n_past : min(stop, slot.wanted[0]) if slot.wanted else stop]
            last = slot.n_past + len(chunk) == len(slot.pending_tokens)
            output: Literal["all", "last", "none"] = "all" if scoring else "last" if last else "none"
            start, stop = batch.extend(chunk, slot.n_past + slot.moved, slot.index, output=output)
            self.n_outputs += len(chunk) if scoring else last
            if scoring:
                slot.scored, slot.n_scored = start, len(chunk)
            rows.append((stop - 1 if last else -len(chunk), slot))
            room -= len(chunk)
