"""The prefix cache: which slot a request gets, and what it need not compute again.

Finished requests leave their tokens in the KV cache of their slot. A new request takes the idle slot whose tokens it
continues; or, where another sequence, idle or running, shares a longer beginning with it, that beginning is copied
to a slot of its own. Kept tokens are forgotten least recently used first, when their slot is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..core.memory import Memory
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


def place(
    request: Request, tokens: Tokens, slots: Sequence[Slot], memory: Memory, *, copies: bool, reuse: bool
) -> tuple[Slot, int]:
    """Choose an idle slot for `request` and bring what can be reused into it.

    Args:
        tokens: what the request needs in the cache.
        slots: at least one of them is idle.
        copies: whether sequences may be copied (not with recurrent state).
        reuse: whether kept tokens may be used.

    Returns:
        the slot, and how many tokens its sequence now holds; at least one token is left to compute.
    """
    idle = [slot for slot in slots if slot.request is None]
    oldest = min(idle, key=lambda slot: (len(slot.kept) > 0, slot.used))
    best, source = 0, oldest
    if reuse:
        for slot in slots:
            shared = common_prefix(slot.kept, tokens)
            # of equal ones take an idle slot: no copy
            if shared > best or (shared == best and shared and source.request is not None and slot.request is None):
                best, source = shared, slot
    elif request.group is not None:
        for slot in slots:  # n completions of one prompt share it even where the cache is off
            if slot.request is request.group:
                best, source = common_prefix(slot.kept, tokens), slot
    best = min(best, len(tokens) - 1)
    if best == 0:
        memory.remove(oldest.index)
        oldest.forget()
        return oldest, 0
    # keep a long sequence that shares only its beginning: copy, when there is another slot
    takes = source.request is None and (len(idle) == 1 or 2 * best >= len(source.kept))
    if takes or source is oldest:
        if not memory.remove(source.index, best):
            memory.remove(source.index)  # recurrent state cannot be rolled back
            best = 0
        source.kept = source.kept[:best]
        return source, best
    memory.remove(oldest.index)
    oldest.forget()
    unified = memory.shares_cells
    if not copies or (best < _MIN_COPY and not unified):
        return oldest, 0
    if unified:
        memory.copy(source.index, oldest.index, 0, best)
    else:
        memory.copy(source.index, oldest.index)
        memory.remove(oldest.index, best)
    oldest.kept = source.kept[:best]
    return oldest, best
