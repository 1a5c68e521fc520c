"""vLLM's settings of a request, and what they are here."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import sampling_params as engine
from ...engine.answer_params import AnswerParams
from ...errors import InvalidRequest
from ...keywords import names_unknown


@names_unknown
@dataclass
class StructuredOutputsParams:
    """What an answer must match; one of them.

    Attributes:
        json: a JSON schema, as a mapping, a JSON text or a type.
        grammar: GBNF here.
        backend: taken, and without effect.
    """

    json: Any = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_fallback: bool = False
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None
    backend: str | None = None

    @classmethod
    def from_optional(cls, **settings: Any) -> StructuredOutputsParams | None:
        """The settings that are not None; None where none is."""
        given = {name: value for name, value in settings.items() if value is not None}
        return cls(**given) if given else None

    def settings(self) -> dict[str, Any]:
        """As llcuda_ffi.SamplingParams takes it.

        Raises:
            InvalidRequest: a field that has no counterpart.
        """
        for name in ("whitespace_pattern", "structural_tag"):
            if getattr(self, name) is not None:
                raise InvalidRequest(f"{name} is not supported: give a regex, a grammar, or tools of a chat")
        given = {"json_schema": self.json, "regex": self.regex, "choices": self.choice, "grammar": self.grammar}
        if isinstance(self.json, str):
            try:
                given["json_schema"] = json.loads(self.json)
            except ValueError as error:
                raise InvalidRequest(f"json= is a text that is not JSON: {error}") from None
        if self.json_object:
            given["json_schema"] = {"type": "object"}
        return {name: value for name, value in given.items() if value is not None}


GuidedDecodingParams = StructuredOutputsParams


class RequestOutputKind(Enum):
    """What an asynchronous request yields: all so far, what is new, or the end alone."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class SamplingType(IntEnum):
    """How tokens are chosen."""

    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


@names_unknown
@dataclass
class SamplingParams:
    """vLLM's SamplingParams, with its defaults (max_tokens=16, temperature=1, no top_k, no min_p).

    Raises:
        InvalidRequest: a value is out of range.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logits_processors: list[Callable[..., Any]] | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    guided_decoding: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    priority: int = 0
    extra_args: dict[str, Any] = field(default_factory=dict)
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    flat_logprobs: bool = False
    skip_clone: bool = False
    skip_reading_prefix_cache: bool | None = None
    thinking_token_budget: int | None = None
    repetition_detection: None = None

    def __post_init__(self) -> None:
        self.here(0)  # what is out of range is told where it is written

    @classmethod
    def from_optional(cls, **settings: Any) -> SamplingParams:
        """The settings that are not None."""
        return cls(**{name: value for name, value in settings.items() if value is not None})

    @property
    def sampling_type(self) -> SamplingType:
        """How tokens are chosen."""
        if self.temperature == 0:
            return SamplingType.GREEDY
        return SamplingType.RANDOM if self.seed is None else SamplingType.RANDOM_SEED

    def clone(self) -> SamplingParams:
        """A copy."""
        return dataclasses.replace(self)

    def here(self, n_prompt: int, controls: Callable[[], frozenset[int]] = frozenset) -> engine.SamplingParams:
        """As llcuda_ffi's SamplingParams.

        Args:
            n_prompt: tokens of the prompt; logits processors of vLLM see what comes after them.
            controls: gives the control tokens, which skip_special_tokens=False writes into the text.

        Raises:
            InvalidRequest: a value is out of range, or best_of asks for more than n.
        """
        if self.best_of is not None and self.best_of != self.n:
            raise InvalidRequest("best_of is not supported: ask for n completions with logprobs=0 and take the best")
        shape = self.structured_outputs or self.guided_decoding
        if not isinstance(shape, (StructuredOutputsParams, type(None))):
            raise InvalidRequest(f"structured_outputs must be StructuredOutputsParams, not {type(shape).__name__}")
        if self.thinking_token_budget not in (None, -1):
            raise InvalidRequest("thinking_token_budget is not here: llcuda_ffi.Llama.chat has max_reasoning_tokens=")
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        same = (
            "n", "presence_penalty", "frequency_penalty", "temperature", "top_p", "top_k", "min_p", "stop",
            "include_stop_str_in_output", "ignore_eos", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs",
            "allowed_token_ids", "priority",
        )  # fmt: skip
        here = engine.SamplingParams(
            **{name: given[name] for name in same},
            repeat_penalty=self.repetition_penalty,
            penalty_last_n=-1,
            stop_token_ids=self.stop_token_ids or (),
            bad_words=self.bad_words or (),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            seed=drawn(self.seed),
            prefix_cache=not self.skip_reading_prefix_cache,
            logits_processors=[processor(one, n_prompt) for one in self.logits_processors or ()],
            overflow="stop",
            **(shape.settings() if shape is not None else {}),
        )
        return here if self.skip_special_tokens else AnswerParams.of(here, controls())


def drawn(seed: Any) -> Any:
    """A seed of 64 bits as one of libllama's; -1 draws one."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        return seed
    return None if seed == -1 else int(seed) % (2**32 - 1)


@names_unknown
@dataclass
class BeamSearchParams:
    """vLLM's settings of LLM.beam_search."""

    beam_width: int = 1
    max_tokens: int = 16
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False


@names_unknown
@dataclass
class PoolingParams:
    """vLLM's settings of LLM.embed.

    Attributes:
        dimensions: keep the first so many numbers.
        normalize, use_activation: to length 1.
        truncate_prompt_tokens: cut texts that are too long, to what the model takes; -1 or that length.
        task: "embed", or "token_embed" for the vector of each token.
    """

    dimensions: int | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None
    task: str | None = None


def processor(
    function: Callable[..., Any], n_prompt: int
) -> Callable[[npt.NDArray[np.int32], npt.NDArray[np.float32]], Any]:
    """A logits processor of vLLM, (generated, logits) or (prompt, generated, logits), as one of this engine."""
    try:
        wide = len(inspect.signature(function).parameters) == 3
    except (TypeError, ValueError):
        wide = False

    def here(token_ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> Any:
        prompt, generated = token_ids[:n_prompt].tolist(), token_ids[n_prompt:].tolist()
        return function(prompt, generated, logits) if wide else function(generated, logits)

    here.__name__ = getattr(function, "__name__", type(function).__name__)
    return here


def check_params(params: Any, kind: type) -> None:
    """Raise InvalidRequest where params are of another kind, such as llcuda_ffi's own or a dict."""
    if not isinstance(params, kind):
        given = f"{type(params).__module__}.{type(params).__name__}"
        raise InvalidRequest(f"params must be {kind.__name__} of llcuda_ffi.compat.vllm, not {given}")
