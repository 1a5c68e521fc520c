"""How many ways a GBNF grammar can begin: libllama follows all of them at once.

An ambiguous grammar of a few lines can have 2^40 of them, and libllama would never come back from following them.
This reads a grammar as libllama does, but only to count; what it cannot read is left to libllama to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST = 200_000

_TOKEN = re.compile(
    r'\s+|#[^\n]*|(?P<name>[\w-]+)(?P<define>\s*::=)?|(?P<text>"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\.|!?<[^>]*>)'
    r"|\{\s*(?P<low>\d*)\s*(?P<comma>,?)\s*(?P<high>\d*)\s*\}|(?P<sign>[()|*+?])",
    re.DOTALL,
)


class _Unreadable(Exception):
    pass


@dataclass
class _Item:
    """A terminal (no rule, no group), a rule's name, or a group; repeated low to high times (None: without end)."""

    rule: str | None = None
    group: list[list[_Item]] | None = None
    empty: bool = False
    low: int = 1
    high: int | None = 1


@dataclass
class Ways:
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

    def alternatives(self, alternatives: list[list[_Item]]) -> tuple[int, int]:
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

    def item(self, item: _Item) -> tuple[int, int]:
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


def count_ways(grammar: str) -> Ways:
    """Count for a whole grammar; nothing is counted where it cannot be read."""
    ways = Ways()
    try:
        rules = dict(_parse(grammar))
    except _Unreadable:
        return ways
    orders = (list(reversed(rules)), list(rules))
    for i in range(16):  # rules may refer to earlier and later ones: repeat until nothing grows
        before = dict(ways._rules)
        for name in orders[i % 2]:
            ways._rules[name] = ways.alternatives(rules[name])
        if before == ways._rules or ways.begins >= MOST:
            break
    return ways


def _parse(grammar: str) -> Iterator[tuple[str, list[list[_Item]]]]:
    name: str | None = None
    stack: list[list[list[_Item]]] = [[[]]]
    at = 0
    while at < len(grammar):
        match = _TOKEN.match(grammar, at)
        if match is None:
            raise _Unreadable
        at = match.end()
        items = stack[-1][-1]
        if match["define"]:
            if len(stack) > 1:
                raise _Unreadable
            if name is not None:
                yield name, stack[0]
            name, stack = match["name"], [[[]]]
        elif match["name"]:
            items.append(_Item(rule=match["name"]))
        elif match["text"]:
            items.append(_Item(empty=match["text"] == '""'))
        elif match["sign"] == "(":
            stack.append([[]])
        elif match["sign"] == ")":
            if len(stack) == 1:
                raise _Unreadable
            group = stack.pop()
            stack[-1][-1].append(_Item(group=group))
        elif match["sign"] == "|":
            stack[-1].append([])
        elif match["sign"] or match["low"] is not None:
            if not items:
                raise _Unreadable
            items[-1] = _repeated(items[-1], match)
    if name is None or len(stack) > 1:
        raise _Unreadable
    yield name, stack[0]


def _repeated(item: _Item, match: re.Match[str]) -> _Item:
    if (item.low, item.high) != (1, 1):  # a repeat of a repeat: as if in brackets
        item = _Item(group=[[item]])
    if match["sign"]:
        item.low, item.high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[match["sign"]]
    else:
        item.low = int(match["low"] or 0)
        item.high = int(match["high"]) if match["high"] else None if match["comma"] else item.low
        if item.high is not None and item.high < item.low:
            raise _Unreadable
    return item
