"""How many ways a GBNF grammar can begin: libllama follows all of them at once.

An ambiguous grammar of a few lines can have 2^40 of them, and libllama would never come back from following them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .gbnf import Grammar, Item

MOST = 200_000


@dataclass
class TokenPaths:
    """What was counted.

    Attributes:
        begins: the most ways in which some rule can begin, at most MOST.
        skips: the most of them that begin after something optional was left out: each costs again at every token.
        repeats_nothing: whether something that may be empty is repeated without end.
    """

    begins: int = 0
    skips: int = 0
    repeats_nothing: bool = False
    _rules: dict[str, tuple[int, int]] = field(default_factory=dict)

    def count(self, rules: Mapping[str, list[list[Item]]]) -> None:
        """Count until nothing grows: rules may refer to earlier and later ones."""
        names = list(rules)
        orders = (names[::-1], names)
        for i in range(16):
            before = dict(self._rules)
            for name in orders[i % 2]:
                self._rules[name] = self.alternatives(rules[name])
            if before == self._rules or self.begins >= MOST:
                break

    def alternatives(self, alternatives: list[list[Item]]) -> tuple[int, int]:
        """(ways to begin, ways to be empty)."""
        begin = empty = 0
        for items in alternatives:
            b, e = 0, 1
            for item in reversed(items):
                ib, ie = self.item(item)
                self.skips = max(self.skips, min(MOST, ie * b))
                b, e = min(MOST, ib + ie * b), min(MOST, ie * e)
            begin, empty = min(MOST, begin + b), min(MOST, empty + e)
        self.begins = max(self.begins, begin)
        return begin, empty

    def item(self, item: Item) -> tuple[int, int]:
        """The same of one item, with its repetition."""
        if item.rule is not None:
            begin, empty = self._rules.get(item.rule, (0, 0))
        elif item.group is not None:
            begin, empty = self.alternatives(item.group)
        else:
            begin, empty = (0, 1) if item.empty else (1, 0)
        if item.high is None and empty:
            self.repeats_nothing = True
        optional = 1 if item.high is None else item.high - item.low
        b, e = 0, 1
        for _ in range(optional if empty else min(optional, 1)):
            b, e = min(MOST, begin + empty * b), min(MOST, empty * e + 1)
        for _ in range(item.low if empty else min(item.low, 1)):
            b, e = min(MOST, begin + empty * b), min(MOST, empty * e)
        return b, e


def count_paths(grammar: Grammar) -> TokenPaths:
    """Count for a whole grammar."""
    ways = TokenPaths()
    ways.count(grammar.rules)
    return ways
