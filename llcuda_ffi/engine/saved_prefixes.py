"""Kept prefixes in a file: the KV cache of finished requests, for a later process."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..core.state import SavedState, save_state
from ..errors import BackendFailure, InvalidRequest
from ..regular_file import open_regular, written_whole
from .scheduler import Scheduler

_MAGIC = b"LLCUDAFFIPREFIX1"


@dataclass(frozen=True, repr=False)
class SavedPrefixes:
    """What a Llama kept of finished requests: `Llama.save_state()` gives one, `Llama.load_state` takes it.

    Attributes:
        states: sequences, the last used one last, each after the checkpoints from which it can be gone back to.
    """

    states: tuple[SavedState, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(state.tokens) for state in self.states if not state.partial)

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(len(state.data) for state in self.states)

    def __repr__(self) -> str:
        return f"<SavedPrefixes {self.n_tokens} tokens, {self.nbytes} bytes>"


def kept_prefixes(scheduler: Scheduler) -> list[tuple[int, list[SavedState]]]:
    """What idle slots keep, each with its checkpoints, and when it was last used, in steps."""
    context, prefixes = scheduler.context, scheduler.prefixes
    return [
        (
            slot.used,
            [
                *prefixes.saved_checkpoints(slot.cached_tokens),
                save_state(context, slot.index, tokens=slot.cached_tokens.tolist()),
            ],
        )
        for slot in prefixes.kept()
    ]


def write_prefixes(saved: SavedPrefixes, path: str | os.PathLike[str]) -> int:
    """Write states to a file, which appears whole or not at all; returns the tokens written."""
    with written_whole(path) as fresh, fresh.open("wb") as out:
        out.write(_MAGIC)
        for state in saved.states:
            raw = state.to_bytes()
            out.write(len(raw).to_bytes(8, "little"))
            out.write(raw)
    return saved.n_tokens


def read_prefixes(path: str | os.PathLike[str]) -> SavedPrefixes:
    """The states in a file."""
    try:
        with open_regular(path) as file:
            raw = memoryview(file.read())
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
    return SavedPrefixes(tuple(states))


def restore_prefixes(scheduler: Scheduler, states: list[SavedState], share: int) -> int:
    """Take up to `share` sequences from the end of the list into idle slots; returns the tokens now kept from them."""
    idle = [slot for slot in scheduler.slots if slot.request is None]
    idle.sort(key=lambda slot: (len(slot.cached_tokens) > 0, slot.used))
    total = 0
    for slot in idle[:share]:
        if not states:
            break
        try:
            total += scheduler.prefixes.adopt(slot, states.pop())
        except BackendFailure:  # no room: sequences that shared cells do so no longer
            if not total:
                raise
        while states and states[-1].partial:
            scheduler.prefixes.adopt_checkpoint(states.pop())
    return total
