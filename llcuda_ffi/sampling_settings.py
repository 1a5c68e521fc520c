"""SamplingParams' fields as keywords, so that editors complete them and type checkers know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

# (int32 ids of prompt and answer, float32 logits of the next token) → other logits, or None: changed in place
LogitsProcessor = Callable[[Any, Any], Any]

Overflow = Literal["error", "stop", "shift"]


class SamplingSettings(TypedDict, total=False):
    """The keywords of `generate`, apart from n and json_schema, which decide what it returns. See SamplingParams."""

    max_tokens: int | None
    min_tokens: int
    temperature: float
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Sequence[int] | None
    bad_words: Sequence[str] | None
    logits_processors: LogitsProcessor | Sequence[LogitsProcessor]
    penalty_last_n: int
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_breakers: Sequence[str]
    top_n_sigma: float
    top_k: int
    typical_p: float
    top_p: float
    min_p: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    adaptive_p_target: float
    adaptive_p_decay: float
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop_str_in_output: bool
    ignore_eos: bool
    max_reasoning_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    echo: bool
    overflow: Overflow
    keep: int
    prefix_cache: bool
    priority: int
    timeout: float | None
    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None
    lark: str | None
    lora: Any
