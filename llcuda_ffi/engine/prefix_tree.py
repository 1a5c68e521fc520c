"""Saved sequences by their beginnings: a tree whose paths are tokens (a radix tree)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import pairwise

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


@dataclass(eq=False, slots=True)
class _Node:
    """Where sequences part, or one ends.

    Attributes:
        depth: how many tokens all sequences below share.
        shortest: of those sequences.
        children: by the token that follows.
    """

    depth: int
    shortest: SavedSequence
    children: dict[int, _Node] = field(default_factory=dict)


class PrefixTree:
    """Sequences of which none begins with another."""

    def __init__(self) -> None:
        self._root = _Node(0, SavedSequence(None, np.empty(0, np.int32), memoryview(b"")))

    def __bool__(self) -> bool:
        return bool(self._root.children)

    def along(self, tokens: Tokens) -> list[tuple[int, SavedSequence]]:
        """How many of these tokens sequences share, the most first, and the shortest of those that share so many: the
        one that can be gone back in most easily."""
        node, shared, found = self._root, 0, []
        while shared == node.depth and shared < len(tokens):
            child = node.children.get(int(tokens[shared]))
            if child is None:
                break
            shared += common_prefix(child.shortest.tokens[shared : child.depth], tokens[shared:])
            found.append((shared, child.shortest))
            node = child
        return found[::-1]

    def add(self, saved: SavedSequence) -> None:
        """Add one that begins with none of the others, and none with it."""
        node, tokens = self._root, saved.tokens
        while (child := node.children.get(int(tokens[node.depth]))) is not None:
            at = node.depth + common_prefix(child.shortest.tokens[node.depth : child.depth], tokens[node.depth :])
            if at < child.depth:
                child = _Node(at, child.shortest, {int(child.shortest.tokens[at]): child})
                node.children[int(tokens[node.depth])] = child
            if len(tokens) < len(child.shortest.tokens):
                child.shortest = saved
            node = child
        node.children[int(tokens[node.depth])] = _Node(len(tokens), saved)

    def remove(self, saved: SavedSequence) -> None:
        """Remove one that is there."""
        tokens, path = saved.tokens, [self._root]
        while path[-1].depth < len(tokens):
            path.append(path[-1].children[int(tokens[path[-1].depth])])
        path.pop()
        del path[-1].children[int(tokens[path[-1].depth])]
        for above, node in reversed([*pairwise(path)]):
            if len(node.children) == 1:
                (above.children[int(tokens[above.depth])],) = node.children.values()
            elif node.shortest is saved:
                node.shortest = min((child.shortest for child in node.children.values()), key=_length)


def _length(saved: SavedSequence) -> int:
    return len(saved.tokens)
