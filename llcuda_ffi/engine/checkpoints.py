"""Checkpoints: small states from which a memory that cannot be rolled back goes on.

A checkpoint is libllama's partial state after the first n tokens of some prompt: the recurrent rows, or the window.
It is found by those tokens, not by the slot that it came from: any sequence whose attention holds the same n tokens can
go on from it, and a purely recurrent model needs nothing else.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

SPACING = 32  # tokens that a checkpoint must save, at least: a smaller chunk costs a batch of its own
FROM_END = 4  # before a prompt's end: what a chat template opens an answer with is often another the next time
BYTES_A_TOKEN = 4096  # of checkpoints within a prompt, taken where a batch ends anyway


def wanted_positions(n: int, start: int, junction: int, known: Sequence[int]) -> list[int]:
    """Where checkpoints of a prompt of n tokens are worth their batch, ascending.

    Args:
        start: tokens that need not be computed.
        junction: where the prompt leaves one that was computed before, where it could not go on from there.
        known: lengths for which there are checkpoints.
    """
    wanted: list[int] = []
    for at in sorted({junction, n - FROM_END}):
        before = bisect_right(known, at)
        last = max(known[before - 1] if before else 0, wanted[-1] if wanted else 0)
        if start < at < n and at - last >= SPACING:
            wanted.append(at)
    return wanted


def spacing(nbytes: int) -> int:
    """How many tokens apart checkpoints of so many bytes are worth their memory within a prompt."""
    return max(SPACING, nbytes // BYTES_A_TOKEN)


class Checkpoints:
    """Partial states by what computed them, their length and a hash of their tokens; least recently used first.

    Attributes:
        nbytes: how much of the budget is in use.
    """

    def __init__(self, budget: int) -> None:
        """`budget`: most bytes; 0 keeps none."""
        self._budget = budget
        self._states: OrderedDict[tuple[Hashable, int, bytes], memoryview] = OrderedDict()
        self._lengths: dict[Hashable, dict[int, int]] = {}  # how many there are of each length
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._states)

    @property
    def enabled(self) -> bool:
        """Whether there is a budget."""
        return self._budget > 0

    def known(self, key: Hashable, tokens: Tokens) -> list[int]:
        """The lengths of the beginnings of `tokens` for which there is one, ascending."""
        lengths = self._lengths.get(key)
        if not lengths:
            return []
        found, done, digest = [], 0, hashlib.sha256()
        for n in sorted(lengths):
            if n > len(tokens):
                break
            digest.update(tokens[done:n].tobytes())
            done = n
            if (key, n, digest.copy().digest()) in self._states:
                found.append(n)
        return found

    def get(self, key: Hashable, tokens: Tokens) -> memoryview | None:
        """The state after `tokens`, now the most recently used one."""
        name = _name(key, tokens)
        state = self._states.get(name)
        if state is not None:
            self._states.move_to_end(name)
        return state

    def add(self, key: Hashable, tokens: Tokens, state: memoryview) -> None:
        """Keep the state after `tokens`, and forget old ones that no longer fit the budget."""
        name = _name(key, tokens)
        if name in self._states or len(state) > self._budget:
            return
        self._states[name] = state
        lengths = self._lengths.setdefault(key, {})
        lengths[len(tokens)] = lengths.get(len(tokens), 0) + 1
        self.nbytes += len(state)
        while self.nbytes > self._budget:
            self._forget(next(iter(self._states)))

    def _forget(self, name: tuple[Hashable, int, bytes]) -> None:
        self.nbytes -= len(self._states.pop(name))
        key, n, _ = name
        lengths = self._lengths[key]
        lengths[n] -= 1
        if not lengths[n]:
            del lengths[n]
        if not lengths:
            del self._lengths[key]

    def clear(self) -> None:
        """Forget all."""
        self._states.clear()
        self._lengths.clear()
        self.nbytes = 0


def _name(key: Hashable, tokens: Tokens) -> tuple[Hashable, int, bytes]:
    return key, len(tokens), hashlib.sha256(tokens.tobytes()).digest()
