"""The samplers that a chain can be built of (the llama_sampler_init functions of llama.h)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from ..native.handle import Handle
from ..params import INT32_MAX, UINT32_MAX, integer, items, mapping, number
from .model import Model

if TYPE_CHECKING:
    from typing_extensions import Self

# the samplers that choose a token; a chain ends with one
SELECTING = frozenset({"greedy", "dist", "mirostat", "mirostat_v2", "adaptive_p"})
# no sequence is longer, and libllama allocates a buffer of what it is told
_MOST_LAST_N = 1 << 22


class ChainBuilder(Handle):
    """The base of SamplerChain whose methods append one sampler each and return the chain.

    All raise InvalidRequest for a value out of range.
    """

    model: Model
    _ffi: Any
    _lib: Any

    def _append(self, name: str, sampler: Any) -> Self:
        """Take ownership of a sampler, named as llama.h calls it."""
        raise NotImplementedError

    # --- selecting ---

    def greedy(self) -> Self:
        """Select the most likely token."""
        return self._append("greedy", self._lib.llama_sampler_init_greedy())

    def dist(self, seed: int | None = None) -> Self:
        """Draw from the distribution; without a seed a random one."""
        return self._append("dist", self._lib.llama_sampler_init_dist(checked_seed(seed)))

    def mirostat(self, tau: float = 5.0, eta: float = 0.1, m: int = 100, seed: int | None = None) -> Self:
        """Mirostat 1.0: keep the surprise near `tau`."""
        t, e = number("tau", tau, 0.0), number("eta", eta, 0.0)
        m = integer("m", m, 2, self.model.vocab.n_tokens)
        return self._append(
            "mirostat", self._lib.llama_sampler_init_mirostat(self.model.vocab.n_tokens, checked_seed(seed), t, e, m)
        )

    def mirostat_v2(self, tau: float = 5.0, eta: float = 0.1, seed: int | None = None) -> Self:
        """Mirostat 2.0."""
        t, e = number("tau", tau, 0.0), number("eta", eta, 0.0)
        return self._append("mirostat_v2", self._lib.llama_sampler_init_mirostat_v2(checked_seed(seed), t, e))

    def adaptive_p(self, target: float, decay: float = 0.9, seed: int | None = None) -> Self:
        """Select tokens near a target probability that adapts over time."""
        self.model.library.profile.require("llama_sampler_init_adaptive_p")
        t, d = number("target", target, -1.0, 1.0), number("decay", decay, 0.0, 0.99)
        return self._append("adaptive_p", self._lib.llama_sampler_init_adaptive_p(t, d, checked_seed(seed)))

    # --- narrowing ---

    def top_k(self, k: int) -> Self:
        """Keep the k most likely tokens; 0 keeps all."""
        return self._append("top_k", self._lib.llama_sampler_init_top_k(integer("top_k", k, 0, INT32_MAX)))

    def top_p(self, p: float, min_keep: int = 1) -> Self:
        """Keep the likeliest tokens that together have probability p."""
        return self._append("top_p", self._lib.llama_sampler_init_top_p(number("top_p", p, 0.0, 1.0), _keep(min_keep)))

    def min_p(self, p: float, min_keep: int = 1) -> Self:
        """Keep tokens at least p times as likely as the likeliest."""
        return self._append("min_p", self._lib.llama_sampler_init_min_p(number("min_p", p, 0.0, 1.0), _keep(min_keep)))

    def typical(self, p: float, min_keep: int = 1) -> Self:
        """Locally typical sampling."""
        return self._append(
            "typical", self._lib.llama_sampler_init_typical(number("typical_p", p, 0.0, 1.0), _keep(min_keep))
        )

    def top_n_sigma(self, n: float) -> Self:
        """Keep logits within n standard deviations of the best."""
        return self._append("top_n_sigma", self._lib.llama_sampler_init_top_n_sigma(number("top_n_sigma", n)))

    def xtc(self, probability: float, threshold: float = 0.1, min_keep: int = 1, seed: int | None = None) -> Self:
        """Exclude top choices: with this probability, drop all but the last token above the threshold."""
        p, t = number("xtc_probability", probability, 0.0, 1.0), number("xtc_threshold", threshold, 0.0, 1.0)
        return self._append("xtc", self._lib.llama_sampler_init_xtc(p, t, _keep(min_keep), checked_seed(seed)))

    # --- reshaping ---

    def temperature(self, t: float, delta: float = 0.0, exponent: float = 1.0) -> Self:
        """Divide logits by t (0 keeps only the best); `delta` makes t vary with the entropy (dynatemp)."""
        t = number("temperature", t, 0.0)
        delta, exponent = number("dynatemp_range", delta, 0.0), number("dynatemp_exponent", exponent)
        if delta:
            return self._append("temp_ext", self._lib.llama_sampler_init_temp_ext(t, delta, exponent))
        return self._append("temp", self._lib.llama_sampler_init_temp(t))

    def penalties(self, last_n: int = 64, repeat: float = 1.0, frequency: float = 0.0, presence: float = 0.0) -> Self:
        """Make tokens among the last `last_n` accepted ones less likely; -1 means the training context."""
        n = self._last_n("penalty_last_n", last_n)
        r = number("repeat_penalty", repeat, 1e-6)
        f, p = number("frequency_penalty", frequency), number("presence_penalty", presence)
        lib = self._lib
        if self.model.library.profile.has("llama_sampler_init_penalties.n_vocab"):
            sampler = lib.llama_sampler_init_penalties(self.model.vocab.n_tokens, n, r, f, p)
        else:
            sampler = lib.llama_sampler_init_penalties(n, r, f, p)
        return self._append("penalties", sampler)

    def dry(
        self,
        multiplier: float,
        base: float = 1.75,
        allowed_length: int = 2,
        last_n: int = -1,
        breakers: Sequence[str] = ("\n", ":", '"', "*"),
    ) -> Self:
        """Penalise the continuation of repeated sequences ("don't repeat yourself")."""
        m, b = number("dry_multiplier", multiplier, 0.0), number("dry_base", base, 0.0)
        length = integer("dry_allowed_length", allowed_length, 0, INT32_MAX)
        n = self._last_n("dry_penalty_last_n", last_n)
        ffi = self._ffi
        given = items("dry_breakers", breakers)
        if not all(isinstance(s, str) and "\0" not in s for s in given):
            raise InvalidRequest("dry_breakers must be a list of texts without NUL")
        texts = [ffi.new("char[]", s.encode("utf-8", "replace")[:1024]) for s in given if s]
        array = ffi.new("const char *[]", texts)
        former = self.model.library.profile.has("llama_sampler_init_dry.n_ctx_train")
        trained = [self.model.n_ctx_train] if former else []
        with self.model.shared():
            vocab = self.model.vocab.pointer
            sampler = self._lib.llama_sampler_init_dry(vocab, *trained, m, b, length, n, array, len(texts))
        return self._append("dry", sampler)

    def logit_bias(self, bias: Mapping[int, float]) -> Self:
        """Add to the logits of some tokens; float("-inf") bans one."""
        n_vocab = self.model.vocab.n_tokens
        pairs = []
        for token, value in mapping("logit_bias", bias).items():
            allowed = value if value == float("-inf") else number(f"logit_bias[{token}]", value)
            pairs.append((integer("a logit_bias token", token, 0, n_vocab - 1), allowed))
        array = self._ffi.new("llama_logit_bias[]", pairs)
        return self._append("logit_bias", self._lib.llama_sampler_init_logit_bias(n_vocab, len(pairs), array))

    def infill(self) -> Self:
        """For fill-in-the-middle: prefer to end, merge tokens with a common prefix."""
        with self.model.shared():
            sampler = self._lib.llama_sampler_init_infill(self.model.vocab.pointer)
        return self._append("infill", sampler)

    def _last_n(self, name: str, value: int) -> int:
        n = integer(name, value, -1, INT32_MAX)
        return min(self.model.n_ctx_train if n < 0 else n, _MOST_LAST_N)


def checked_seed(seed: int | None) -> int:
    """The seed, checked; without one a random one."""
    # 0xFFFFFFFF asks libllama for a seed of its own, which it does not tell
    return random.randrange(UINT32_MAX) if seed is None else integer("seed", seed, 0, UINT32_MAX - 1)


def _keep(min_keep: int) -> int:
    return integer("min_keep", min_keep, 0, INT32_MAX)
