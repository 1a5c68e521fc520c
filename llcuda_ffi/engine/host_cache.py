"""The host tier: sequences that lost their place in the KV cache, kept in ordinary memory up to a budget."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences share from the start."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    differs = a[:n] != b[:n]
    first = int(differs.argmax())
    return first if differs[first] else n


@dataclass(frozen=True, eq=False, slots=True)
class SavedSequence:
    """A sequence's whole state.

    Attributes:
        key: what it was computed with.
        tokens: what it holds.
        data: libllama's bytes.
    """

    key: Hashable
    tokens: Tokens
    data: memoryview


class HostCache:
    """Saved sequences, least recently used first.

    Attributes:
        budget: most bytes; 0 keeps none.
        nbytes: how much of it is in use.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.nbytes = budget, 0
        self._saved: list[SavedSequence] = []

    def __iter__(self) -> Iterator[SavedSequence]:
        return iter(self._saved)

    def __len__(self) -> int:
        return len(self._saved)

    def holds(self, key: Hashable, tokens: Tokens) -> bool:
        """Whether a saved sequence begins with these tokens."""
        return any(one.key == key and common_prefix(one.tokens, tokens) == len(tokens) for one in self._saved)

    def add(self, saved: SavedSequence) -> None:
        """Keep it instead of those that it continues, and forget old ones that no longer fit the budget."""
        for one in [one for one in self._saved if one.key == saved.key]:
            if common_prefix(one.tokens, saved.tokens) == len(one.tokens):
                self._forget(one)
        if len(saved.data) > self.budget:
            return
        self._saved.append(saved)
        self.nbytes += len(saved.data)
        while self.nbytes > self.budget:
            self._forget(self._saved[0])

    def touch(self, saved: SavedSequence) -> None:
        """It is used now."""
        self._saved.remove(saved)
        self._saved.append(saved)

    def _forget(self, saved: SavedSequence) -> None:
        self._saved.remove(saved)
        self.nbytes -= len(saved.data)

    def clear(self) -> None:
        """Forget all."""
        self._saved.clear()
        self.nbytes = 0
