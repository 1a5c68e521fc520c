"""Drafts by multi-token prediction (MTP): layers of the model itself, which say what follows from its hidden states.

A context of its own computes those layers. Beside the token at position p it takes the hidden state that the model had
after position p - 1: so it follows what the model computes, and the first draft costs what brings it up to date. What
it holds decides how good the drafts are, never what is generated: the scheduler verifies each one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch
from ..core.context import Context
from ..core.hidden_batch import HiddenBatch
from ..errors import NoKvSlot
from ..params import integer, override
from .prefix_tree import common_prefix
from .slot import Slot, State
from .speculative import most_drafts

_BEHIND = 32  # hidden states that are kept before they are used; a prompt's are at once
_MIN_COPY = 16  # tokens from which another sequence's are worth having


class _Trace:
    """What is known of one sequence.

    Attributes:
        tokens: int32 (n_ctx,), what the model computed at each position.
        fed: the positions below it are in the context, from some position on.
        high: the positions from `fed` to here are in it too: drafts, to be removed.
        rows: float32 (n, width), the hidden states of the positions from `start` on.
        number: of the request that it belongs to.
    """

    def __init__(self, seq: int, n_ctx: int, width: int) -> None:
        self.seq = seq
        self.tokens: npt.NDArray[np.int32] = np.zeros(n_ctx, np.int32)
        self._none: npt.NDArray[np.float32] = np.empty((0, width), np.float32)
        self.forget()

    def forget(self) -> None:
        """Nothing is known."""
        self.fed = self.high = self.start = 0
        self.rows = self._none
        self.number = -1

    @property
    def end(self) -> int:
        """The position after the last hidden state."""
        return self.start + len(self.rows)

    def cut(self, n: int) -> None:
        """What is beyond the first n tokens does not count."""
        self.fed = min(self.fed, n)
        self.rows = self.rows[: max(0, n - self.start)]

    def add(self, position: int, tokens: npt.NDArray[np.int32], rows: npt.NDArray[np.float32]) -> None:
        """The model has computed these tokens."""
        self.fed = min(self.fed, position + common_prefix(self.tokens[position : max(position, self.fed)], tokens))
        self.tokens[position : position + len(tokens)] = tokens
        if not self.start <= position <= self.end:
            self.start, self.rows = position, self._none
        self.rows = np.concatenate((self.rows[: position - self.start], rows))


class MtpDraft:
    """Drafts with the MTP layers of the model, all slots in one batch.

    Attributes:
        apart: bundles before v0.6.0 give hidden states in another order than the batch's where it has several
            sequences and tokens without outputs.
    """

    def __init__(self, target: Context, *, n_draft: int = 3) -> None:
        """
        Raises:
            UnsupportedByBundle, UnsupportedModel: the bundle or the model has no such layers.
            InvalidRequest: the model was loaded without them.
        """
        self._n_draft = integer("n_draft", n_draft, 1, 64)
        self._target, self._threads = target, 0
        self.apart = target.n_seq_max > 1 and not target.model.library.profile.has("embeddings_nextn.in_order")
        self._n_ctx = target.n_ctx_seq
        params = override(target.params, {"mtp": True, "n_outputs_max": 0, "n_rs_seq": 0, "swa_full": True})
        self._context = Context(target.model, params)
        target.keep_hidden()
        assert self._context.memory is not None
        self._memory = self._context.memory
        self._width = target.model.n_embd_out
        self._batch = HiddenBatch(self._context.n_batch, self._width)
        self._traces = [_Trace(i, self._n_ctx, self._width) for i in range(target.n_seq_max)]

    # --- after a batch of the model ---

    def computed(self, batch: Batch, slots: Sequence[Slot]) -> None:
        """See Drafter."""
        n = batch.n_tokens
        rows = self._target.hidden(n)
        seqs = batch.seq[:n, 0]
        for start, stop in pairwise([0, *(np.flatnonzero(np.diff(seqs)) + 1).tolist(), n]):
            slot = slots[int(seqs[start])]
            self._note(slot, int(batch.pos[start]), batch.token[start:stop], rows[start:stop])
        behind = [(trace, trace.end) for trace in self._traces if len(trace.rows) > _BEHIND]
        if behind:
            with self._known():
                self._feed(behind)

    def _note(self, slot: Slot, position: int, tokens: npt.NDArray[np.int32], rows: npt.NDArray[np.float32]) -> None:
        request, trace = slot.request, self._traces[slot.index]
        if request is None:
            return  # a filler
        if request.media is not None or not np.isfinite(rows).all():
            self._clear(trace)
            return
        number = slot.arrival()
        if slot.state is State.PROMPT and (number, position) != (trace.number, trace.end):
            self._begin(trace, slot.pending_tokens[:position])
            trace.number = number
        trace.add(position, tokens, rows)

    def _begin(self, trace: _Trace, prefix: npt.NDArray[np.int32]) -> None:
        """A sequence goes on from these tokens, which the model did not compute now: some may be known."""
        best = max(self._traces, key=lambda other: common_prefix(other.tokens[: other.fed], prefix))
        shared = common_prefix(best.tokens[: best.fed], prefix)
        if best is not trace and shared >= common_prefix(trace.tokens[: trace.fed], prefix) + _MIN_COPY:
            self._clear(trace)
            self._memory.copy(best.seq, trace.seq)
            known = max(best.fed, best.end)
            trace.tokens[:known] = best.tokens[:known]
            trace.fed, trace.high, trace.start, trace.rows = best.fed, best.high, best.start, best.rows
        trace.cut(common_prefix(trace.tokens[: max(trace.fed, trace.end)], prefix))

    # --- before the next ---

    def propose(self, slots: Sequence[Slot], room: int) -> None:
        """See Drafter."""
        wanted: dict[Slot, int] = {}
        parts = []
        for slot in slots:
            slot.draft = []
            n, trace = min(most_drafts(slot, self._n_draft, self._n_ctx), room), self._traces[slot.index]
            if n > 0 and trace.start < slot.n_past <= trace.end:
                wanted[slot] = n
                room -= n
                trace.cut(slot.n_past)
                trace.tokens[slot.n_past] = slot.last
                parts.append((trace, slot.n_past + 1))
        if wanted:
            threads = self._target.n_threads
            if threads != self._threads:  # what the thread control gave the target holds here
                self._context.set_threads(threads)
                self._threads = threads
            with self._known():
                self._draft(wanted, parts)

    def _draft(self, wanted: dict[Slot, int], parts: list[tuple[_Trace, int]]) -> None:
        context, batch, traces = self._context, self._batch, self._traces
        self._feed([(trace, stop - 1) for trace, stop in parts])  # tokens without outputs go first, alone
        batch.clear()
        rows = []
        for slot, (trace, stop) in zip(wanted, parts, strict=True):
            self._add(trace, self._first(trace), stop)
            batch.output[batch.n_tokens - 1] = 1
            rows.append((batch.n_tokens - 1, slot))
        context.decode(batch)
        for trace, stop in parts:
            self._took(trace, stop)
        while True:
            going = []
            hidden = context.hidden(batch.n_tokens)
            for row, slot in rows:
                token = int(context.logits_view(row).argmax())
                slot.draft.append(token)
                ended = len(slot.draft) == wanted[slot] or context.model.vocab.is_eog(token)
                if not ended and np.isfinite(hidden[row]).all():
                    going.append((slot, token, row))
            if not going:
                return
            batch.clear()
            rows = []
            for slot, token, before in going:
                trace = traces[slot.index]
                row = batch.add(token, trace.high, slot.index, output=True)
                batch.hidden[row] = hidden[before]
                trace.high += 1
                rows.append((row, slot))
            context.decode(batch)

    # --- the context ---

    @contextmanager
    def _known(self) -> Iterator[None]:
        """Where this ends early, what the context holds is not known; for want of room nothing is drafted."""
        try:
            yield
        except NoKvSlot:
            self._forget()
        except BaseException:
            self._forget()
            raise

    def _feed(self, parts: list[tuple[_Trace, int]]) -> None:
        """Bring sequences up to a position each."""
        batch = self._batch
        batch.clear()
        for trace, stop in parts:
            at = self._first(trace)
            while at < stop:
                end = min(stop, at + batch.capacity - batch.n_tokens)
                self._add(trace, at, end)
                at = end
                if batch.n_tokens == batch.capacity:
                    self._context.decode(batch)
                    batch.clear()
        if batch.n_tokens:
            self._context.decode(batch)
        for trace, stop in parts:
            self._took(trace, stop)

    def _first(self, trace: _Trace) -> int:
        """The first position to be computed; what is beyond it is removed. Where hidden states are missing, it begins
        anew: positions must follow each other."""
        first = max(1, trace.fed)
        if first <= trace.start:
            first = trace.start + 1
            self._memory.remove(trace.seq)
        elif trace.high > first:
            self._memory.remove(trace.seq, first)
        trace.high = first
        return first

    def _add(self, trace: _Trace, first: int, stop: int) -> None:
        batch = self._batch
        a, b = batch.extend(trace.tokens[first:stop], first, trace.seq, output="none")
        batch.hidden[a:b] = trace.rows[first - 1 - trace.start : stop - 1 - trace.start]

    def _took(self, trace: _Trace, stop: int) -> None:
        """The context has computed what is below a position: of the hidden states the last one is still needed."""
        trace.fed = trace.high = max(trace.fed, stop)
        keep = min(stop, trace.end) - 1
        if keep > trace.start:
            trace.start, trace.rows = keep, trace.rows[keep - trace.start :].copy()

    def _clear(self, trace: _Trace) -> None:
        self._memory.remove(trace.seq)
        trace.forget()

    def _forget(self) -> None:
        """What the context holds is not known."""
        self._memory.clear(data=False)
        for trace in self._traces:
            trace.forget()

    def close(self) -> None:
        """Free the context of the layers."""
        self._context.close()
