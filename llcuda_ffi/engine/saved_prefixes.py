"""Kept prefixes in a file: the KV cache of finished requests, for a later process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..core.state import SavedState, save_state
from ..errors import InvalidRequest
from .scheduler import Scheduler

_MAGIC = b"LLCUDAFFIPREFIX1"


def kept_prefixes(scheduler: Scheduler) -> list[tuple[int, SavedState]]:
    """What idle slots keep, with when it was last used, in steps."""
    context = scheduler.context
    return [
        (slot.used, save_state(context, slot.index, tokens=slot.kept.tolist())) for slot in scheduler.prefixes.kept()
    ]


def write_prefixes(states: Sequence[SavedState], path: str | os.PathLike[str]) -> int:
    """Write states to a file, which appears whole or not at all; returns the tokens written."""
    target = Path(path)
    with tempfile.NamedTemporaryFile(dir=target.resolve().parent, prefix=f".{target.name}.", delete=False) as out:
        try:
            out.write(_MAGIC)
            for state in states:
                raw = state.to_bytes()
                out.write(len(raw).to_bytes(8, "little"))
                out.write(raw)
            out.flush()
            os.fsync(out.fileno())
            os.replace(out.name, target)
        except BaseException:
            os.unlink(out.name)
            raise
    return sum(len(state.tokens) for state in states)


def read_prefixes(path: str | os.PathLike[str]) -> list[SavedState]:
    """The states in a file, the last used one last."""
    try:
        raw = memoryview(Path(path).read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read ({error.strerror})") from error
    if bytes(raw[: len(_MAGIC)]) != _MAGIC:
        raise InvalidRequest(f"{path} is no state saved by Llama.save_state")
    states = []
    at = len(_MAGIC)
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 8], "little")
        if at + 8 + size > len(raw):
            raise InvalidRequest(f"{path} is cut short")
        states.append(SavedState.from_bytes(raw[at + 8 : at + 8 + size]))
        at += 8 + size
    return states


def restore_prefixes(scheduler: Scheduler, states: list[SavedState], share: int) -> int:
    """Take up to `share` states from the end of the list into idle slots; returns the tokens now kept from them."""
    idle = [slot for slot in scheduler.slots if slot.request is None]
    idle.sort(key=lambda slot: (len(slot.kept) > 0, slot.used))
    total = 0
    for slot in idle[:share]:
        if not states:
            break
        total += scheduler.prefixes.adopt(slot, states.pop())
    return total
