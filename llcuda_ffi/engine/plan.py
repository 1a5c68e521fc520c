"""What the next batch holds: a token for each generating slot, then chunks of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.batch import Batch
from ..core.context import Context
from ..core.memory import MemoryKind
from .slot import Slot, State
from .speculative import Drafter

# a slot, and the batch row of its logits; below 0: minus the tokens of a part of its prompt, which has none
Row = tuple[int, Slot]

# an attribute of an enum class takes longer to look up
_GENERATING, _PROMPT = State.GENERATING, State.PROMPT

# so many idle slots between two others are cheaper computed with them than the two apart
_GAP_ON_GPU, _GAP_ON_CPU = 16, 1

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
        fillers: idle slots with a token in the batch, to be removed from the memory after it: see `_bridged`.
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
        self._apart = drafter is not None and drafter.apart
        self._prompts_next = True  # where batches are apart
        self.n_outputs = 0
        self.prompting: list[Slot] = []
        self.fillers: list[Slot] = []
        self._filling = 0  # their token: one that is computed anyway
        self._mixes = context.mixes_embeddings
        self._gap = 0 if self._apart else _widest_gap(context)
        self._n_ctx = context.n_ctx_seq

    def plan(self, slots: Sequence[Slot]) -> list[Row]:
        """Fill the batch; returns the slots in it.

        In the order of their sequences: where each has cells of its own, libllama computes neighbours together, the
        n-th token of each with the n-th of the others, and all else apart (llama_batch_allocr::split_equal).
        """
        self.batch.clear()
        self.n_outputs = 0
        generating: list[Slot] = []
        prompting: list[Slot] = []
        rows: list[Row] = []
        runs = self.drafts
        for slot in slots:
            state = slot.state
            if state is _GENERATING:
                generating.append(slot)
                if slot.run:
                    runs = True
            elif state is _PROMPT:
                prompting.append(slot)
        if self._apart and prompting and generating:  # in turns
            self._prompts_next = not self._prompts_next
            if self._prompts_next:
                generating = []
            else:
                prompting = []
        self.prompting, self.fillers = prompting, []
        if self._drafter is not None:
            # twice: what is not rolled back but computed again comes with a token of its own
            used = 2 * len(generating) + sum(len(slot.run) for slot in generating)
            self._drafter.propose(generating, max(0, min(self.most - used, self._chunk)))
        chunks = self._chunks(generating, prompting) if prompting else {}
        running = len(generating) > 0
        chosen = (
            [slot for slot in slots if (running and slot.state is _GENERATING) or slot in chunks]
            if chunks
            else generating
        )
        if self._gap and chosen and chosen[-1].index - chosen[0].index >= len(chosen):
            room = self.most - sum(chunks.values()) - sum(1 + len(s.run) + len(s.draft) for s in generating)
            chosen = self._bridged(chosen, slots, room)
        if not (runs or chunks):
            self._ones(chosen, rows)
            return rows
        ones: list[Slot] = []
        for slot in chosen:
            if slot.state is not _PROMPT and not (slot.run or slot.draft):
                ones.append(slot)
            else:
                self._ones(ones, rows)
                ones = []
                rows.append(self._prompt(slot, chunks[slot]) if slot in chunks else self._run(slot))
        self._ones(ones, rows)
        return rows

    def computed(self, slots: Sequence[Slot]) -> None:
        """The batch was computed: its results are still there, and not counted in the slots.

        Args:
            slots: of all sequences, in their order.
        """
        if self._drafter is not None:
            self._drafter.computed(self.batch, slots)

    def _ones(self, slots: Sequence[Slot], rows: list[Row]) -> None:
        """Add the next token of each of these slots; of a filler any, without output."""
        start = self.batch.n_tokens
        tokens = [slot.last for slot in slots]
        positions = [slot.n_past + slot.moved for slot in slots]
        seq_ids = [slot.index for slot in slots]
        if not self.fillers:
            self.batch.fill(tokens, positions, seq_ids, start=start)
            rows += enumerate(slots, start)
            self.n_outputs += len(slots)
            return
        outputs = [1] * len(slots)
        for i, slot in enumerate(slots):
            if slot.request is None:
                tokens[i], positions[i], outputs[i] = self._filling, len(slot.cached_tokens), 0
            else:
                rows.append((start + i, slot))
        self.batch.fill(tokens, positions, seq_ids, start=start, outputs=outputs)
        self.n_outputs += sum(outputs)

    def _bridged(self, chosen: Sequence[Slot], slots: Sequence[Slot], room: int) -> list[Slot]:
        """These slots with the few idle ones between them, the `fillers`, at most `room`.

        Where each sequence has cells of its own, a gap in the order splits the micro-batch, and all weights are read
        once more: 8 streams in every second of 16 sequences take as long as one after the other.
        """
        at = {slot.index: slot for slot in slots if slot.request is None and len(slot.cached_tokens) < self._n_ctx}
        first = chosen[0]
        self._filling = first.last if first.state is _GENERATING else max(0, int(first.pending_tokens[first.n_past]))
        bridged = [first]
        for slot in chosen[1:]:
            gap = range(bridged[-1].index + 1, slot.index)
            if len(gap) <= min(self._gap, room - len(self.fillers)) and all(i in at for i in gap):
                between = [at[i] for i in gap]
                self.fillers += between
                bridged += between
            bridged.append(slot)
        return bridged

    def _run(self, slot: Slot) -> Row:
        """Add several tokens of a slot: a run without choice before `last`, a draft after it."""
        tokens = [*slot.run, slot.last, *slot.draft]
        every = self._apart or len(slot.draft) > 0
        start, _ = self.batch.extend(tokens, slot.n_past + slot.moved, slot.index, output="all" if every else "last")
        self.n_outputs += len(tokens) if every else 1
        return start + len(slot.run), slot

    def _prompt(self, slot: Slot, n: int) -> Row:
        """Add the next `n` tokens of a slot's prompt, images among them as embeddings."""
        stop = slot.n_past + n
        last = stop == len(slot.pending_tokens)
        scoring = slot.request is not None and slot.request.scoring
        output: Literal["all", "last", "none"] = "all" if scoring else "last" if last else "none"
        media = None if slot.request is None else slot.request.media
        if media is None:
            chunk = slot.pending_tokens[slot.n_past : stop]
            start, end = self.batch.extend(chunk, slot.n_past + slot.moved, slot.index, output=output)
        else:
            for first, beyond, span in media.pieces(slot.n_past, stop):
                if span is not None:
                    self.batch.embed(*media.embedded(span, first, beyond), slot.index)
                    continue
                chunk, position = slot.pending_tokens[first:beyond], first + media.moved(first)
                start, end = self.batch.extend(chunk, position, slot.index, output=output if beyond == stop else "none")
        self.n_outputs += n if scoring else last
        if scoring:
            slot.scored, slot.n_scored = start, n
        return end - 1 if last else -n, slot

    def _chunks(self, generating: Sequence[Slot], prompting: Sequence[Slot]) -> dict[Slot, int]:
        """How many tokens of which prompts to compute: in the order of arrival, and whole ones after the first.

        Beside running streams it is one micro-batch, so that those never wait longer; but so many as there are prompts
        for each stream, where those that wait for their first token are more.
        """
        room = self.most - sum(1 + len(slot.run) + len(slot.draft) for slot in generating)
        if generating:
            room = min(room, self._chunk * max(1, len(prompting) // len(generating)))
        chunks: dict[Slot, int] = {}
        scored = self._scored  # of all together
        for slot in sorted(prompting, key=Slot.arrival):
            if room <= 0 or (chunks and self._apart) or (chunks and len(slot.pending_tokens) - slot.n_past > room):
                break
            request = slot.request
            stop = slot.n_past + room
            scoring = request is not None and request.scoring
            if scoring:
                stop = min(stop, slot.n_past + scored)
            if request is not None and request.media is not None:
                stop = min(stop, request.media.text_until(slot.n_past, self._mixes))
            if slot.wanted:
                stop = min(stop, slot.wanted[0])
            n = min(stop, len(slot.pending_tokens)) - slot.n_past
            if n:  # else it has come to an image: see media.py
                chunks[slot] = n
                room -= n
                scored -= n * scoring
        return chunks


def _widest_gap(context: Context) -> int:
    """How many idle sequences between two others are worth a token of each; 0 where none is."""
    memory, model = context.memory, context.model
    if context.kv_unified or memory is None or memory.kind is not MemoryKind.FULL:
        return 0  # one micro-batch anyway; or a token cannot be taken back
    if model.has_encoder or model.moves_positions:
        return 0
    return _GAP_ON_GPU if model.placement.on_gpu else _GAP_ON_CPU
