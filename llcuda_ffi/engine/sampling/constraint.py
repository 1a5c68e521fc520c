"""What a structured output must offer to the engine, and the one that libllama brings: GBNF grammars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...core.grammar import GrammarSampler
from ...core.model import Model


class Constraint(Protocol):
    """Says which tokens may come next in one completion."""

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits of forbidden tokens to -inf, in place; shape (n_vocab,)."""

    @classmethod
    def ahead(cls, constraints: Sequence[Any]) -> None:
        """Compute the next masks of several constraints of this kind together, where that is faster."""

    def accept(self, token: int) -> None:
        """The token that was chosen.

        Raises:
            InvalidRequest: it is not allowed here.
        """

    def restart(self, tokens: Sequence[int]) -> None:
        """Begin again, and accept `tokens`: what was accepted after them did not happen."""

    def forced(self) -> list[int]:
        """Tokens that must come next, when there is no choice; may be empty. They are not accepted yet."""

    def finished(self) -> bool:
        """Whether the output is complete and may only end."""

    def result(self, text: str) -> Any:
        """The parsed value of the finished text, or None."""


def masks_ahead(constraints: Sequence[Constraint]) -> None:
    """Compute the masks that the rows of one step need, those of a kind together."""
    for kind in {type(constraint) for constraint in constraints}:
        kind.ahead([constraint for constraint in constraints if type(constraint) is kind])


class GrammarConstraint:
    """A GBNF grammar, matched by libllama."""

    def __init__(self, model: Model, grammar: str, root: str = "root") -> None:
        self._vocab = model.vocab
        self._grammar = GrammarSampler(model, grammar, root)
        self._done = False

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """See Constraint."""
        self._grammar.mask(logits)

    @classmethod
    def ahead(cls, constraints: Sequence[Any]) -> None:
        """See Constraint. libllama tries candidates with their logits, so there is nothing to compute ahead."""

    def accept(self, token: int) -> None:
        """See Constraint."""
        if self._vocab.is_eog(token):
            self._done = True
        else:
            self._grammar.accept(token)

    def restart(self, tokens: Sequence[int]) -> None:
        """See Constraint."""
        self._grammar.reset()
        self._done = False
        for token in tokens:
            self.accept(token)

    def forced(self) -> list[int]:
        """See Constraint."""
        return []

    def finished(self) -> bool:
        """See Constraint."""
        return self._done

    def result(self, text: str) -> Any:
        """See Constraint."""
        return None
