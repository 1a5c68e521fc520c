"""llama-cpp-python's lists of logits processors and stopping criteria."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
LogitsProcessor = Callable[[Tokens, Logits], Logits]
StoppingCriteria = Callable[[Tokens, Logits], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Functions that change the logits of the next token, one after the other."""

    def __call__(self, input_ids: Tokens, scores: Logits) -> Logits:
        """The logits after all of them."""
        for function in self:
            scores = function(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Functions that may end an answer before its next token."""

    def __call__(self, input_ids: Tokens, logits: Logits) -> bool:
        """Whether one of them ends it."""
        return any(function(input_ids, logits) for function in self)


class MinTokensLogitsProcessor:
    """Bans the end token until an answer has so many tokens."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self._least, self._end = min_tokens, token_eos
        self._n_prompt: int | None = None

    def __call__(self, input_ids: Tokens, scores: Logits) -> Logits:
        """The logits, without the end's while it is too early."""
        if self._n_prompt is None:
            self._n_prompt = len(input_ids)
        if len(input_ids) - self._n_prompt < self._least:
            scores[self._end] = -np.inf
        return scores


def stopping(criteria: Any, end: int) -> Callable[[Tokens, Logits], None]:
    """A logits processor under which only the end token is left once `criteria` hold."""

    def processor(input_ids: Tokens, logits: Logits) -> None:
        if criteria(input_ids, logits):
            kept = np.float32(0)
            logits[:] = -np.inf
            logits[end] = kept

    return processor
