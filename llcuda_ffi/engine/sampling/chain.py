"""From a request's settings to the object that chooses its tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.context import Context
from ...core.model import Model
from ...core.sampler import SamplerChain, sample_rows
from ...errors import InvalidRequest
from ...params import UINT32_MAX
from ...sampling_params import SamplingParams
from ..results import TokenLogprob
from .constraint import Constraint
from .logit_steps import LogitStep
from .logprobs import log_softmax, token_logprob
from .topk_prefilter import TopKPrefilter

# what decides the make-up of a chain, apart from its seed
_SHAPE = (
    "temperature", "penalty_last_n", "repeat_penalty", "frequency_penalty", "presence_penalty",
    "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_breakers",
    "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc_probability", "xtc_threshold",
    "dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta",
    "adaptive_p_target", "adaptive_p_decay", "ignore_eos",
)  # fmt: skip

_KEPT_CHAINS = 64


def build_chain(model: Model, params: SamplingParams, seed: int) -> SamplerChain:
    """The chain that `params` describes, in the order in which SamplingParams lists it."""
    chain = SamplerChain(model)
    bias = dict(params.logit_bias)
    if params.ignore_eos:
        bias.update(dict.fromkeys(model.vocab.eog_tokens, float("-inf")))
    if bias:
        chain.logit_bias(bias)
    if params.penalty_last_n and (
        params.repeat_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    ):
        chain.penalties(params.penalty_last_n, params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
    if params.dry_multiplier > 0:
        chain.dry(
            params.dry_multiplier,
            params.dry_base,
            params.dry_allowed_length,
            params.dry_penalty_last_n,
            params.dry_breakers,
        )
    if params.greedy:
        return chain.greedy()
    if params.mirostat:
        chain.temperature(params.temperature)
        if params.mirostat == 1:
            return chain.mirostat(params.mirostat_tau, params.mirostat_eta, seed=seed)
        return chain.mirostat_v2(params.mirostat_tau, params.mirostat_eta, seed=seed)
    if params.top_n_sigma >= 0:
        chain.top_n_sigma(params.top_n_sigma)
    if params.top_k:
        chain.top_k(params.top_k)
    if params.typical_p < 1.0:
        chain.typical(params.typical_p)
    if params.top_p < 1.0:
        chain.top_p(params.top_p)
    if params.min_p > 0.0:
        chain.min_p(params.min_p)
    if params.xtc_probability > 0.0:
        chain.xtc(params.xtc_probability, params.xtc_threshold, seed=seed)
    if params.temperature != 1.0 or params.dynatemp_range:
        chain.temperature(params.temperature, params.dynatemp_range, params.dynatemp_exponent)
    if params.adaptive_p_target >= 0:
        return chain.adaptive_p(params.adaptive_p_target, params.adaptive_p_decay, seed=seed)
    return chain.dist(seed)


class Chains:
    """Sampler chains kept for reuse: making one costs little, its first use allocates a buffer of the vocabulary.

    Only chains without a seed of their own can be kept: greedy ones.  A seeded chain's random state is made with it,
    so the kept ones get a new last sampler.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._free: dict[tuple[Any, ...], list[SamplerChain]] = {}
        self._count = 0

    def take(self, params: SamplingParams, seed: int) -> SamplerChain:
        """A chain for `params`, with no history."""
        kept = self._free.get(_key(params))
        if kept:
            chain = kept.pop()
            self._count -= 1
            if not params.greedy:
                chain.reseed(seed)
            return chain
        return build_chain(self._model, params, seed)

    def give(self, params: SamplingParams, chain: SamplerChain) -> None:
        """Keep a chain whose request is over."""
        reseeds = params.greedy or chain.names[-1] == "dist"
        if chain.attached or self._count >= _KEPT_CHAINS or not reseeds or params.xtc_probability > 0.0:
            chain.close()
            return
        chain.reset()
        self._free.setdefault(_key(params), []).append(chain)
        self._count += 1

    def close(self) -> None:
        """Free them all."""
        for chains in self._free.values():
            for chain in chains:
                chain.close()
        self._free.clear()
        self._count = 0


def _key(params: SamplingParams) -> tuple[Any, ...]:
    return (*(getattr(params, name) for name in _SHAPE), tuple(sorted(params.logit_bias.items())))


def pick_seed(params: SamplingParams) -> int:
    """The request's seed, or a drawn one."""
    return random.randrange(UINT32_MAX) if params.seed is None else params.seed


@dataclass(slots=True)
class TokenSampler:
    """What chooses the tokens of one request.

    Attributes:
        chain: its sampler chain.
        reach: how many of the likeliest tokens the chain can choose from; 0 for all (topk_prefilter.py).
        row: samples rows where the plain C call is not enough, None otherwise.
        argmax: where greedy needs no chain: the highest logit is the token, unless it is one of these.
        reduced: whether its rows are reduced by the device (reduced_rows.py).
    """

    chain: SamplerChain
    reach: int
    row: RowSampler | None = None
    argmax: frozenset[int] | None = None
    reduced: bool = False


@dataclass(slots=True)
class RowSampler:
    """Chooses tokens for one request where the plain C call is not enough: constraints, steps, log probabilities.

    Attributes:
        generated: the request's tokens so far; the steps look at them.
        banned: tokens that are never chosen.
        forcing: whether a token that the constraint leaves no choice for may come here: the first, and all where the
            scheduler does not take them by itself. It is not drawn, so that draws are the same either way.
    """

    context: Context
    chain: SamplerChain
    constraint: Constraint | None
    steps: Sequence[LogitStep]
    generated: Sequence[int]
    logprobs: int | None
    prefilter: TopKPrefilter
    reach: int
    banned: frozenset[int] = frozenset()
    forcing: bool = True

    def sample(self, row: int) -> tuple[int, TokenLogprob | None]:
        """Choose a token from batch row `row`; the chain remembers it, the constraint does not yet."""
        logits = self.context.logits_view(row)
        # log probabilities are of the model's own distribution, so they are read before a mask is applied
        wanted = None if self.logprobs is None else log_softmax(logits)
        for step in self.steps:
            step(self.generated, logits)
        token = self._forced()
        if token < 0:
            token = self._drawn(row, logits)
        if wanted is None:
            return token, None
        return token, token_logprob(self.chain.model.vocab, token, wanted, self.logprobs or 0)

    def _forced(self) -> int:
        """The token that the constraint leaves no choice for; -1 where there is one."""
        if self.constraint is None or self.steps or not self.forcing:
            return -1
        forced = self.constraint.forced()[:1]
        if not forced or self.chain.model.vocab.is_eog(forced[0]):
            return -1
        self.chain.accept(forced[0])
        return forced[0]

    def _drawn(self, row: int, logits: npt.NDArray[np.float32]) -> int:
        """A token of those that the constraint and the steps leave."""
        if self.constraint is not None:
            self.constraint.mask(logits)
        if (self.constraint is not None or self.steps) and not np.isfinite(logits.max()):
            if self.steps and (end := self._end()) >= 0:
                return end
            raise self._nothing("the grammar leaves" if not self.steps else "bans, logits processors and grammar leave")
        token = -1
        if self.reach:
            token = self.prefilter.sample(logits[None], [(self.chain, 0, self.reach)])[0]
        if token < 0:
            with self.context.exclusive():
                token = sample_rows(self.context, [(self.chain, row)])[0]
        if token in self.banned or logits[token] == -np.inf:  # libllama takes one where none is left
            raise self._nothing("bans, penalties and grammar leave")
        return token

    def _end(self) -> int:
        """The token that ends the output, where the constraint lets nothing else come (min_tokens or not); else -1."""
        if self.constraint is None:
            return -1
        vocab = self.chain.model.vocab
        row = np.zeros(vocab.n_tokens, np.float32)
        self.constraint.mask(row)
        left = np.flatnonzero(row == 0).tolist()
        return left[-1] if left and all(map(vocab.is_eog, left)) else -1

    def _nothing(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"{what} no token to choose: it cannot go on from here")
