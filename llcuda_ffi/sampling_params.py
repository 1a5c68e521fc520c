"""What one request asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidRequest
from .keywords import names_unknown
from .params import INT32_MAX, UINT32_MAX, _Checked, flag, integer, items, mapping, number, override, shown
from .sampling_settings import LogitsProcessor, Overflow


@names_unknown
@dataclass(frozen=True, kw_only=True)
class SamplingParams(_Checked):
    """How text is generated. The samplers run in the order in which they stand here.

    Attributes:
        max_tokens: most tokens to generate; None or -1 means until the model ends or the context is full,
            0 computes the prompt alone.
        min_tokens: the model's end, `stop` and `stop_token_ids` do not end the answer before so many tokens; a
            structured output ends where nothing more can come.
        temperature: 0 is greedy: always the likeliest token.
        logit_bias: token id → value added to its logit; float("-inf") bans it.
        allowed_token_ids: the only tokens that may be generated.
        bad_words: texts that are not generated in the tokens that the tokenizer has for them, with or without a space
            before them.
        logits_processors: functions (token_ids, logits) that change the logits of the next token before the samplers
            see them, in place or by returning others. token_ids is int32, prompt and answer; logits float32 (n_vocab,).
        penalty_last_n: how many of the last tokens (prompt included) the penalties look at; -1 all, 0 none.
        repeat_penalty: divides logits of repeated tokens; 1 is off.
        frequency_penalty, presence_penalty: OpenAI's; 0 is off.
        dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_breakers: DRY; multiplier 0 is off.
        top_n_sigma: keep logits within n standard deviations of the best; negative is off.
        top_k: keep the k likeliest; 0 or -1 keeps all.
        typical_p: 1 is off.
        top_p: keep the likeliest that together have this probability; 1 is off.
        min_p: keep those at least this share of the likeliest; 0 is off.
        xtc_probability, xtc_threshold: XTC; probability 0 is off.
        dynatemp_range, dynatemp_exponent: temperature that follows the entropy; range 0 is off.
        mirostat: 1 or 2 uses Mirostat with mirostat_tau and mirostat_eta in place of the samplers above.
        adaptive_p_target, adaptive_p_decay: adaptive-p in place of the last draw; a negative target is off.
        seed: the same seed, prompt and settings give the same text, beside other requests up to a batch's rounding;
            None draws one (Completion.seed tells it).
        stop: a text, or texts, that end the completion; they are not part of it.
        stop_token_ids: tokens that end the completion; what they write is not part of it.
        include_stop_str_in_output: keep the stop in the text.
        ignore_eos: go on after the model's end token; a structured output ends where it is complete.
        max_reasoning_tokens: of a chat: after so many tokens of the model's reasoning its end is forced; 0 for none.
        logprobs: give log probabilities: of the chosen token and of this many likeliest (0 to 1000).
        prompt_logprobs: the same for each token of the prompt, which is then computed as a whole.
        echo: let the text begin with the prompt's.
        n: completions of the same prompt; n > 1 makes generate return that many for it.
        overflow: when prompt and answer exceed the context: "error" refuses at once, "stop" ends with "length",
            "shift" forgets half of what follows the first `keep` tokens and goes on.
        keep: tokens at the start that "shift" never forgets.
        prefix_cache: whether cached prefixes may be used; False gives results that do not depend on earlier requests.
        priority: higher ones get a slot first; equal ones in order of arrival.
        timeout: seconds after which the request ends as "cancelled", with the text so far.
        json_schema, regex, choices, grammar, lark: structured output; at most one of them.
        grammar: a GBNF grammar.
        lora: a LoraAdapter, or {adapter: scale}, for this request alone. Requests with the same adapters share batches,
            others take turns.
    """

    max_tokens: int | None = 128
    min_tokens: int = 0
    temperature: float = 0.8
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    logits_processors: Sequence[LogitsProcessor] = ()
    penalty_last_n: int = 64
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_breakers: Sequence[str] = ("\n", ":", '"', "*")
    top_n_sigma: float = -1.0
    top_k: int = 40
    typical_p: float = 1.0
    top_p: float = 0.95
    min_p: float = 0.05
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_p_target: float = -1.0
    adaptive_p_decay: float = 0.9
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_reasoning_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    n: int = 1
    overflow: Overflow = "error"
    keep: int = 0
    prefix_cache: bool = True
    priority: int = 0
    timeout: float | None = None
    json_schema: Any = None
    regex: str | None = None
    choices: Sequence[str] | None = None
    grammar: str | None = None
    lark: str | None = None
    lora: Any = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and integer("max_tokens", self.max_tokens, -1, INT32_MAX) == -1:
            self._set("max_tokens", None)
        integer("min_tokens", self.min_tokens, 0, INT32_MAX if self.max_tokens is None else self.max_tokens)
        number("temperature", self.temperature, 0.0)
        self._set("logit_bias", mapping("logit_bias", self.logit_bias))
        for token, bias in self.logit_bias.items():
            integer("a logit_bias token", token, 0, INT32_MAX)
            if bias != float("-inf"):
                number(f"logit_bias[{token}]", bias)
        integer("penalty_last_n", self.penalty_last_n, -1, INT32_MAX)
        number("repeat_penalty", self.repeat_penalty, 1e-6)
        for name in ("frequency_penalty", "presence_penalty", "top_n_sigma", "dynatemp_exponent"):
            number(name, getattr(self, name))
        for name in ("dry_multiplier", "dry_base", "dynatemp_range", "mirostat_tau", "mirostat_eta"):
            number(name, getattr(self, name), 0.0)
        integer("dry_allowed_length", self.dry_allowed_length, 0, INT32_MAX)
        integer("dry_penalty_last_n", self.dry_penalty_last_n, -1, INT32_MAX)
        if integer("top_k", self.top_k, -1, INT32_MAX) == -1:
            self._set("top_k", 0)
        for name in ("typical_p", "top_p", "min_p", "xtc_probability", "xtc_threshold"):
            number(name, getattr(self, name), 0.0, 1.0)
        integer("mirostat", self.mirostat, 0, 2)
        number("adaptive_p_target", self.adaptive_p_target, -1.0, 1.0)
        number("adaptive_p_decay", self.adaptive_p_decay, 0.0, 0.99)
        if self.seed is not None:
            integer("seed", self.seed, 0, UINT32_MAX - 1)
        self._set("stop", _texts("stop", self.stop))
        self._set("dry_breakers", _texts("dry_breakers", self.dry_breakers))
        self._set("bad_words", _texts("bad_words", self.bad_words))
        self._set("stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            self._set("allowed_token_ids", _ids("allowed_token_ids", self.allowed_token_ids))
            if not self.allowed_token_ids:
                raise InvalidRequest("allowed_token_ids names no token: leave it out, or name some")
        self._set("logits_processors", _functions("logits_processors", self.logits_processors))
        for name in ("ignore_eos", "prefix_cache", "echo", "include_stop_str_in_output"):
            flag(name, getattr(self, name))
        if self.max_reasoning_tokens is not None:
            integer("max_reasoning_tokens", self.max_reasoning_tokens, 0, INT32_MAX)
        for name in ("logprobs", "prompt_logprobs"):
            if isinstance(getattr(self, name), bool):
                raise InvalidRequest(f"{name} is how many of the likeliest tokens to list at each place, 0 for none")
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 0, 1000)
        integer("n", self.n, 1, 1024)
        if not isinstance(self.overflow, str) or self.overflow not in ("error", "stop", "shift"):
            raise InvalidRequest(f"overflow must be 'error', 'stop' or 'shift', not {shown(self.overflow)}")
        integer("keep", self.keep, 0, INT32_MAX)
        integer("priority", self.priority, -INT32_MAX, INT32_MAX)
        if self.timeout is not None:
            number("timeout", self.timeout, 0.0)
        given = [n for n in ("json_schema", "regex", "choices", "grammar", "lark") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InvalidRequest(f"only one of {' and '.join(given)} can constrain a completion")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0 and not self.mirostat and self.adaptive_p_target < 0


# what may be given as params: a mapping is one of settings
Params = SamplingParams | Mapping[str, Any]


def with_given(settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """`settings` and those of `more` that are not None."""
    return {**settings, **{name: value for name, value in more.items() if value is not None}}


def sampling_params(params: Params | None, settings: Mapping[str, Any]) -> SamplingParams:
    """`params`, or the defaults, with `settings` over them.

    Raises:
        InvalidRequest: an unknown setting, or something else than SamplingParams or a mapping of settings.
    """
    if isinstance(params, Mapping):
        settings, params = {**params, **settings}, None
    if params is None:
        params = SamplingParams()
    elif not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params must be SamplingParams, or a dict of settings, not {type(params).__name__}")
    return override(params, settings)


def params_of_each(
    params: Params | Sequence[Params] | None,
    settings: Mapping[str, Any],
    count: int,
    many: bool,
) -> list[SamplingParams]:
    """The settings of each of `count` prompts; `many` where they came as a list.

    Raises:
        InvalidRequest: as `sampling_params`, or another number of them than of prompts.
    """
    if not isinstance(params, Sequence) or isinstance(params, str):
        return [sampling_params(params, settings)] * count
    if not many or len(params) != count:
        raise InvalidRequest(f"{len(params)} SamplingParams for {count} prompts: give one, or one for each")
    return [sampling_params(p, settings) for p in params]


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = ((value,) if value else ()) if isinstance(value, str) else _listed(name, value)
    if not all(isinstance(t, str) and t for t in texts):
        raise InvalidRequest(f"{name} must be a text, or a list of texts, none empty; not {shown(value)}")
    if len(texts) > 256:
        raise InvalidRequest(f"{name} holds {len(texts)} texts, more than 256")
    return texts


def _ids(name: str, value: object) -> tuple[int, ...]:
    return tuple(integer(f"a token of {name}", token, 0, INT32_MAX) for token in _listed(name, value))


def _functions(name: str, value: object) -> tuple[Any, ...]:
    found = (value,) if callable(value) else _listed(name, value)
    for function in found:
        if not callable(function):
            raise InvalidRequest(f"{name} must be functions (token_ids, logits) → logits, not {shown(function)}")
    return found


def _listed(name: str, value: object) -> tuple[Any, ...]:
    return () if value is None else items(name, value)
