"""A limit to what a model thinks before it answers: after so many tokens the end of its reasoning is forced."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.vocab import Vocab
from .logit_steps import Logits, LogitStep


@dataclass(frozen=True)
class ReasoningBudget:
    """How an answer's reasoning is told and ended.

    Attributes:
        most: tokens of reasoning, between its marks.
        begin, end: the marks.
        opened: whether the prompt has opened it; otherwise the answer may.
        forced: token ids that end it and open the answer.
    """

    most: int
    begin: bytes
    end: bytes
    opened: bool
    forced: tuple[int, ...]

    def step(self, vocab: Vocab) -> LogitStep:
        """What keeps one answer to it."""
        return _Watch(self, vocab)


class _Watch:
    """Reads one answer as it comes, and forces the end where it is due."""

    def __init__(self, budget: ReasoningBudget, vocab: Vocab) -> None:
        self._budget, self._vocab = budget, vocab
        self._read = 0  # tokens looked at
        self._tail = b""  # the last bytes, where a mark may stand
        self._left = budget.most if budget.opened else None  # None: not opened yet
        self._over = False
        self._forced = 0  # of the tokens that end it

    def __call__(self, generated: Sequence[int], logits: Logits) -> None:
        """See LogitStep."""
        for token in generated[self._read :]:
            if not self._over:
                self._take(token)
        self._read = len(generated)
        if self._over or self._left is None or self._left > 0 or self._in_character:
            return
        logits[:] = -np.inf
        logits[self._budget.forced[self._forced]] = 0

    @property
    def _in_character(self) -> bool:
        """Whether the end is due and waits for the rest of a character, which a grammar wants whole."""
        return not self._forced and utf_8_decode(self._tail, "replace", False)[1] < len(self._tail)

    def _take(self, token: int) -> None:
        """One more token of the answer."""
        budget = self._budget
        waited = self._in_character
        self._tail += self._vocab.piece(token, special=True)
        if self._left is None:
            text = self._tail.lstrip()
            if text.startswith(budget.begin):
                self._left, self._tail = budget.most, text[len(budget.begin) :]
            elif len(text) >= len(budget.begin) or not budget.begin.startswith(text):
                self._over = True  # it answers at once
            return
        self._over = budget.end in self._tail
        self._tail = self._tail[-len(budget.end) :]
        if self._left or waited:
            self._left = max(0, self._left - 1)
            return
        self._forced += 1
        self._over = self._over or self._forced == len(budget.forced)
