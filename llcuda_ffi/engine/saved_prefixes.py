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


def save_prefixes(schedulers: Sequence[Scheduler], path: str | os.PathLike[str]) -> int:
    """Write what idle slots keep; returns the tokens written."""
    target = Path(path)
    idle = ((scheduler, slot) for scheduler in schedulers for slot in scheduler.prefixes.kept())
    kept = sorted(idle, key=lambda found: found[1].used)
    total = 0
    with tempfile.NamedTemporaryFile(dir=target.resolve().parent, prefix=f".{target.name}.", delete=False) as out:
        try:
            out.write(_MAGIC)
            for scheduler, slot in kept:
                raw = save_state(scheduler.context, slot.index, tokens=slot.kept.tolist()).to_bytes()
                out.write(len(raw).to_bytes(8, "little"))
                out.write(raw)
                total += len(slot.kept)
            out.flush()
            os.fsync(out.fileno())
            os.replace(out.name, target)
        except BaseException:
            os.unlink(out.name)
            raise
    return total


def load_prefixes(schedulers: Sequence[Scheduler], path: str | os.PathLike[str]) -> int:
    """Read them into idle slots, the last used ones first; returns the tokens now kept from the file."""
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
    idle = [(scheduler, slot) for scheduler in schedulers for slot in scheduler.slots if slot.request is None]
    idle.sort(key=lambda found: (len(found[1].kept) > 0, found[1].used))
    total = 0
    for (scheduler, slot), state in zip(idle, reversed(states), strict=False):
        total += scheduler.prefixes.adopt(slot, state)
    return total
