"""The host tier: sequences that lost their place in the KV cache, kept in ordinary memory up to a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator

from .prefix_tree import PrefixTree, SavedSequence, Tokens


class HostCache:
    """Saved sequences, least recently used first. None begins with another.

    Attributes:
        budget: most bytes; 0 keeps none.
        nbytes: how much of it is in use.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.nbytes = budget, 0
        self._saved: OrderedDict[SavedSequence, None] = OrderedDict()
        self._trees: dict[Hashable, PrefixTree] = {}

    def __iter__(self) -> Iterator[SavedSequence]:
        return iter(self._saved)

    def __len__(self) -> int:
        return len(self._saved)

    def along(self, key: Hashable, tokens: Tokens) -> list[tuple[int, SavedSequence]]:
        """How many of these tokens sequences computed with `key` share, the most first, and the shortest of those that
        share so many."""
        tree = self._trees.get(key)
        return [] if tree is None else tree.along(tokens)

    def holds(self, key: Hashable, tokens: Tokens) -> bool:
        """Whether a saved sequence begins with these tokens."""
        return next((shared for shared, _ in self.along(key, tokens)), 0) == len(tokens)

    def add(self, saved: SavedSequence) -> None:
        """Keep it, if no other begins with it, instead of the one that it continues; and forget old ones that no longer
        fit the budget."""
        if self.holds(saved.key, saved.tokens):
            return
        for shared, one in self.along(saved.key, saved.tokens):
            if shared == len(one.tokens):
                self._forget(one)
        if len(saved.data) > self.budget:
            return
        self._saved[saved] = None
        self._trees.setdefault(saved.key, PrefixTree()).add(saved)
        self.nbytes += len(saved.data)
        while self.nbytes > self.budget:
            self._forget(next(iter(self._saved)))

    def touch(self, saved: SavedSequence) -> None:
        """It is used now."""
        self._saved.move_to_end(saved)

    def _forget(self, saved: SavedSequence) -> None:
        del self._saved[saved]
        tree = self._trees[saved.key]
        tree.remove(saved)
        if not tree:
            del self._trees[saved.key]
        self.nbytes -= len(saved.data)

    def clear(self) -> None:
        """Forget all."""
        self._saved.clear()
        self._trees.clear()
        self.nbytes = 0
