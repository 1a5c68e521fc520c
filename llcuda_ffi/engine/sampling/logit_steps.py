"""What changes a row of logits before the samplers see it, apart from a constraint: bans by token, word and length,
and the user's own functions.

A step sees the tokens generated so far and keeps nothing of its own, so a request that is computed again is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.vocab import Vocab
from ...errors import InvalidRequest
from ...sampling_params import SamplingParams

Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
# (tokens generated so far, logits of the next one, changed in place)
LogitStep = Callable[[Sequence[int], Logits], None]

_NEVER = np.float32("-inf")
_LOWEST = -float(np.finfo(np.float32).max)


def logit_steps(params: SamplingParams, vocab: Vocab, prompt: Tokens) -> list[LogitStep]:
    """The steps that a request's settings ask for, in the order in which they are applied.

    Raises:
        InvalidRequest: a token is outside the vocabulary, a bad word writes nothing, or every token is banned.
    """
    banned = banned_tokens(params) | frozenset(vocab.eog_tokens if params.ignore_eos else ())
    allowed = params.allowed_token_ids
    if len(banned) == vocab.n_tokens if allowed is None else banned.issuperset(allowed):
        raise InvalidRequest("logit_bias, allowed_token_ids and ignore_eos leave no token to choose")
    steps: list[LogitStep] = []
    if params.logits_processors:
        steps.append(UserSteps(params.logits_processors, prompt))
    if params.allowed_token_ids is not None:
        steps.append(_only(vocab.ids(params.allowed_token_ids), vocab.n_tokens))
    if params.bad_words:
        steps.append(_without(_sequences(params.bad_words, vocab)))
    if params.min_tokens:
        ends = vocab.ids([*(() if params.ignore_eos else vocab.eog_tokens), *params.stop_token_ids])
        if len(ends):
            steps.append(_not_before(params.min_tokens, ends))
    return steps


def banned_tokens(params: SamplingParams) -> frozenset[int]:
    """The tokens that logit_bias bans."""
    return frozenset(token for token, bias in params.logit_bias.items() if bias < _LOWEST)


class UserSteps:
    """The functions of SamplingParams.logits_processors."""

    def __init__(self, functions: Sequence[Callable[[Tokens, Logits], Any]], prompt: Tokens) -> None:
        self._functions = functions
        self._n_prompt = len(prompt)
        self._tokens = np.concatenate([prompt, np.empty(64, np.int32)])
        self._known = 0  # generated tokens that stand in it

    def __call__(self, generated: Sequence[int], logits: Logits) -> None:
        """See LogitStep.

        Raises:
            InvalidRequest: a function raised, or gave something else than logits.
        """
        tokens = self._all(generated)
        for function in self._functions:
            try:
                found = function(tokens, logits)
                if found is not None and found is not logits:
                    logits[:] = np.asarray(found, np.float32).reshape(logits.shape)
            except Exception as error:
                name = getattr(function, "__name__", type(function).__name__)
                raise InvalidRequest(f"logits processor {name} failed: {type(error).__name__}: {error}") from error

    def _all(self, generated: Sequence[int]) -> Tokens:
        """The prompt and what was generated; only what is new is copied."""
        start, end = self._n_prompt, self._n_prompt + len(generated)
        if end > len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty(end, np.int32)])
        known = min(self._known, len(generated))
        self._tokens[start + known : end] = generated[known:]
        self._known = len(generated)
        return self._tokens[:end]


def _only(allowed: Tokens, n_vocab: int) -> LogitStep:
    banned = np.ones(n_vocab, bool)
    banned[allowed] = False

    def step(generated: Sequence[int], logits: Logits) -> None:
        logits[banned] = _NEVER

    return step


def _not_before(least: int, ends: Tokens) -> LogitStep:
    def step(generated: Sequence[int], logits: Logits) -> None:
        if len(generated) < least:
            logits[ends] = _NEVER

    return step


def _sequences(words: Sequence[str], vocab: Vocab) -> list[tuple[int, ...]]:
    """The token sequences that write the words, at the start of a text and after a space."""
    found = set()
    for word in words:
        for text in (word, " " + word.lstrip()):
            tokens = tuple(vocab.tokenize(text, add_special=False, parse_special=False).tolist())
            if not tokens:
                raise InvalidRequest(f"bad_words: {word!r:.60} has no tokens in this vocabulary")
            found.add(tokens)
    return sorted(found)


def _without(sequences: Sequence[tuple[int, ...]]) -> LogitStep:
    single = np.array([tokens[0] for tokens in sequences if len(tokens) == 1], np.int32)
    longer = [(list(tokens[:-1]), tokens[-1]) for tokens in sequences if len(tokens) > 1]

    def step(generated: Sequence[int], logits: Logits) -> None:
        logits[single] = _NEVER
        for before, last in longer:
            if generated[-len(before) :] == before:
                logits[last] = _NEVER

    return step
