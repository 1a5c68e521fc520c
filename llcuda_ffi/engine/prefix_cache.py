"""The prefix cache: which slot a request gets, and what it need not compute again.

Finished requests leave their tokens in the KV cache of their slot. A new request takes the idle slot whose tokens it
continues; or, where another sequence, idle or running, shares a longer beginning with it, that beginning is copied
to a slot of its own. Kept tokens are forgotten least recently used first, when their slot is needed; with a host
tier they move to ordinary memory instead, up to a budget, and come back when a request continues them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..core.context import Context
from ..core.state import SavedState, restore_state, save_state, state_size
from ..errors import BackendFailure
from .request import Request
from .slot import Slot

Tokens = npt.NDArray[np.int32]

# a copy between sequences without unified KV moves the whole stream: below this it costs more than computing
_MIN_COPY = 64


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences share from the start."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    differs = a[:n] != b[:n]
    first = int(differs.argmax())
    return first if differs[first] else n


class PrefixCache:
    """Places requests in slots.

    Attributes:
        kept_bytes: how much of the host tier's budget is in use.
    """

    def __init__(self, context: Context, slots: Sequence[Slot], host_bytes: int = 0) -> None:
        """`host_bytes`: how much memory evicted sequences may take; 0 forgets them."""
        assert context.memory is not None
        self._context, self._memory, self._slots = context, context.memory, slots
        model = context.model
        self._copies = not (model.is_recurrent or model.is_hybrid)
        self._budget = host_bytes
        self._host: list[SavedState] = []  # least recently used first
        self.kept_bytes = 0

    def place(self, request: Request, tokens: Tokens, *, reuse: bool) -> tuple[Slot, int]:
        """Choose an idle slot, of which there is one, and bring what can be reused into it.

        Args:
            tokens: what the request needs in the cache.
            reuse: whether kept tokens may be used.

        Returns:
            the slot, and how many tokens its sequence now holds; at least one token is left to compute.
        """
        idle = [slot for slot in self._slots if slot.request is None]
        oldest = min(idle, key=lambda slot: (len(slot.kept) > 0, slot.used))
        best, source = self._longest(request, tokens, oldest, reuse)
        if reuse and self._host and not request.adapters:
            restored = self._restore(tokens, best, oldest)
            if restored:
                return oldest, restored
        best = min(best, len(tokens) - 1)
        if best == 0:
            self._evict(oldest)
            return oldest, 0
        # keep a long sequence that shares only its beginning: copy, when there is another slot
        takes = source.request is None and (len(idle) == 1 or 2 * best >= len(source.kept))
        if takes or source is oldest:
            if 2 * best < len(source.kept):
                self._save(source)
            return source, self._roll_back(source, best)
        self._evict(oldest)
        memory = self._memory
        if not self._copies or (best < _MIN_COPY and not memory.shares_cells):
            return oldest, 0
        if memory.shares_cells:
            memory.copy(source.index, oldest.index, 0, best)
        else:
            memory.copy(source.index, oldest.index)
            memory.remove(oldest.index, best)
        oldest.kept = source.kept[:best]
        return oldest, best

    def shared(self, request: Request) -> int:
        """The longest beginning of its prompt that a slot keeps; from any thread, so it may be out of date."""
        if not request.params.prefix_cache:
            return 0
        kept = (slot.kept for slot in self._slots if slot.adapters == request.adapters)
        return max((common_prefix(tokens, request.prompt) for tokens in kept), default=0)

    def _longest(self, request: Request, tokens: Tokens, default: Slot, reuse: bool) -> tuple[int, Slot]:
        """The slot that shares the longest beginning, of equal ones an idle one: that needs no copy."""
        best, source = 0, default
        if reuse:
            for slot in self._slots:
                if slot.adapters != request.adapters:
                    continue  # what it keeps was computed by another model, so to speak
                shared = common_prefix(slot.kept, tokens)
                if shared > best or (shared == best and shared and source.request is not None and slot.request is None):
                    best, source = shared, slot
        elif request.group is not None:
            for slot in self._slots:  # n completions of one prompt share it even where the cache is off
                if slot.request is request.group:
                    best, source = common_prefix(slot.kept, tokens), slot
        return best, source

    def _roll_back(self, slot: Slot, n: int) -> int:
        """Forget all but the first n tokens of an idle slot; returns how many are left."""
        if not self._memory.remove(slot.index, n):
            self._memory.remove(slot.index)  # recurrent state cannot be rolled back
            n = 0
        slot.kept = slot.kept[:n]
        return n

    # --- the host tier ---

    def _evict(self, slot: Slot) -> None:
        self._save(slot)
        self._memory.remove(slot.index)
        slot.forget()

    def _save(self, slot: Slot) -> None:
        """Keep a copy of an idle slot's sequence in memory, where the budget allows."""
        if self._budget <= 0 or len(slot.kept) < _MIN_COPY or slot.adapters:
            return
        if any(common_prefix(state.tokens, slot.kept) == len(slot.kept) for state in self._host):
            return
        if state_size(self._context, slot.index) > self._budget:
            return
        state = save_state(self._context, slot.index, tokens=slot.kept.tolist())
        self._host.append(state)
        self.kept_bytes += len(state.data)
        while self.kept_bytes > self._budget:
            self.kept_bytes -= len(self._host.pop(0).data)

    def _restore(self, tokens: Tokens, better_than: int, slot: Slot) -> int:
        """Bring back a sequence that shares clearly more than any slot does; returns how many tokens it gives."""
        best, at = max((common_prefix(state.tokens, tokens), i) for i, state in enumerate(self._host))
        if best < better_than + _MIN_COPY:
            return 0
        state = self._host.pop(at)
        self.kept_bytes -= len(state.data)
        self._evict(slot)
        try:
            slot.kept = restore_state(self._context, state, slot.index)
        except BackendFailure:
            return 0  # no room for it: computing the prompt goes on as if it had not been there
        return self._roll_back(slot, min(best, len(tokens) - 1))

    def clear(self) -> None:
        """Forget what idle slots and the host tier keep."""
        self._host.clear()
        self.kept_bytes = 0
        for slot in self._slots:
            if slot.request is None and len(slot.kept):
                self._memory.remove(slot.index)
                slot.forget()
