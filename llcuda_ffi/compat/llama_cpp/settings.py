"""From llama-cpp-python's settings to this engine's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ...core.vocab import Vocab
from ...enums import AttentionType, FlashAttnType, GGMLType, LoadMode, PoolingType, RopeScalingType, SplitMode
from ...errors import InvalidRequest, UnsupportedModel
from ...keywords import check_keywords
from ...params import ContextParams, ModelParams
from ...sampling_params import SamplingParams
from .llama_grammar import LlamaGrammar
from .processors import stopping

# what a completion takes besides the prompt, and what it is here; None: taken, and without effect
SAMPLING = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "temp": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "logprobs": "logprobs",
    "echo": "echo",
    "stop": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repeat_penalty": "repeat_penalty",
    "top_k": "top_k",
    "seed": "seed",
    "mirostat_mode": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "logit_bias": "logit_bias",
    "logits_processor": "logits_processors",
    "tfs_z": None,
    "model": None,
    # of its forks
    "present_penalty": "presence_penalty",
    "dry_range": "dry_penalty_last_n",
    "dry_seq_breakers": "dry_breakers",
    "adaptive_target": "adaptive_p_target",
    "adaptive_decay": "adaptive_p_decay",
    "reasoning_budget": "max_reasoning_tokens",
}
# the order in which llama-cpp-python takes them without their names, after the prompt and suffix, and after tool_choice
COMPLETION_ORDER = (
    "max_tokens", "temperature", "top_p", "min_p", "typical_p", "logprobs", "echo", "stop", "frequency_penalty",
    "presence_penalty", "repeat_penalty", "top_k", "stream", "seed", "tfs_z", "mirostat_mode", "mirostat_tau",
    "mirostat_eta", "model", "stopping_criteria", "logits_processor", "grammar", "logit_bias",
)  # fmt: skip
CHAT_ORDER = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "stream", "stop", "seed", "response_format", "max_tokens",
    "presence_penalty", "frequency_penalty", "repeat_penalty", "tfs_z", "mirostat_mode", "mirostat_tau",
    "mirostat_eta", "model", "logits_processor", "grammar", "logit_bias", "logprobs", "top_logprobs",
)  # fmt: skip
SAMPLE_ORDER = (
    "top_k", "top_p", "min_p", "typical_p", "temp", "repeat_penalty", "frequency_penalty", "presence_penalty", "tfs_z",
    "mirostat_mode", "mirostat_eta", "mirostat_tau", "penalize_nl", "logits_processor", "grammar", "idx",
)  # fmt: skip
GENERATE_ORDER = (
    "top_k", "top_p", "min_p", "typical_p", "temp", "repeat_penalty", "reset", "frequency_penalty", "presence_penalty",
    "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta", "penalize_nl", "logits_processor", "stopping_criteria",
    "grammar",
)  # fmt: skip
# settings of this package's that it does not have
_OURS = {f.name: f.name for f in dataclasses.fields(SamplingParams)} | SAMPLING
# of the constructor: only the values that say nothing, and why
ONLY_UNSET: dict[str, tuple[tuple[Any, ...], str]] = {
    "rpc_servers": ((None, ""), "layers are computed in this process"),
    "use_direct_io": ((None, False), "model_params=ModelParams(load_mode='DIRECT_IO') of llcuda_ffi.Llama does it"),
    "lora_base": ((None,), "adapters are applied to the model itself"),
    "tokenizer": ((None,), "the model's file has its tokenizer"),
    "n_parts": ((None, -1, 1), "a split file is found by its first part"),
    "low_vram": ((None, False), "n_gpu_layers and offload_kqv say it"),
    "numa": ((None, False, 0), "run the process under numactl"),
    "spm_infill": ((None, False), "create_completion(prefix, suffix) writes prefix, suffix, middle"),
}
_CONTEXT = (
    "n_threads_batch", "rope_scaling_type", "attention_type", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor",
    "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx", "offload_kqv", "op_offload", "swa_full",
    "no_perf", "pooling_type",
)  # fmt: skip
_MODEL = ("split_mode", "main_gpu", "tensor_split", "vocab_only", "kv_overrides")
# libllama takes these values for "as the model says"
_UNSET = {"rope_freq_base": 0, "rope_freq_scale": 0, "yarn_ext_factor": -1, "yarn_orig_ctx": 0}
_KINDS = {
    "rope_scaling_type": RopeScalingType,
    "attention_type": AttentionType,
    "pooling_type": PoolingType,
    "split_mode": SplitMode,
}


def named(values: Sequence[Any], order: Sequence[str], settings: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Settings with those that were given without their names.

    Raises:
        InvalidRequest: more than there are, or one that is given by its name too.
    """
    if len(values) > len(order):
        raise InvalidRequest(f"{owner} takes {len(order)} settings without their names, not {len(values)}")
    found = dict(zip(order, values, strict=False))
    twice = [name for name in found if name in settings]
    if twice:
        raise InvalidRequest(f"{owner} was given {', '.join(twice)} twice: by place and by name")
    return {**found, **settings}


def drawn(seed: Any) -> Any:
    """A seed as C casts it; None for -1 and 0xFFFFFFFF, for which libllama draws one."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        return seed
    bits = int(seed) % 2**32
    return None if bits == 2**32 - 1 else bits


def sampling_settings(settings: Mapping[str, Any], vocab: Vocab, owner: str) -> SamplingParams:
    """The settings of one completion.

    Raises:
        UnknownSetting: a name that llama-cpp-python's call does not take either.
    """
    special = ("grammar", "stopping_criteria", "top_logprobs")
    if settings.get("n", 1) != 1:
        raise InvalidRequest("one completion a call: llcuda_ffi.Llama.generate(prompt, n=…) makes several")
    check_keywords(settings, owner, [*_OURS, *special])
    found: dict[str, Any] = {}
    for name, value in settings.items():
        here = None if name == "grammar" else _OURS.get(name)
        if here is not None and value is not None:
            found[here] = value
    if "max_tokens" in settings and (settings["max_tokens"] is None or settings["max_tokens"] <= 0):
        found["max_tokens"] = None
    if isinstance(found.get("logprobs"), bool):
        found["logprobs"] = settings.get("top_logprobs") or 0 if found["logprobs"] else None
    if isinstance(found.get("logit_bias"), Mapping):
        found["logit_bias"] = {int(token): bias for token, bias in found["logit_bias"].items()}
    if "seed" in found:
        found["seed"] = drawn(found["seed"])
    grammar = settings.get("grammar")
    if grammar is not None:
        if not isinstance(grammar, LlamaGrammar):
            raise InvalidRequest(
                f"grammar must be a LlamaGrammar, not {type(grammar).__name__}: LlamaGrammar.from_string(text)"
            )
        found.update(grammar.settings)
    criteria = settings.get("stopping_criteria")
    if criteria is not None:
        if vocab.eos is None:
            raise UnsupportedModel("stopping_criteria need a model with an end token: use stop= or max_tokens=")
        processors = found.get("logits_processors", [])
        processors = [processors] if callable(processors) else [*processors]
        found["logits_processors"] = [*processors, stopping(criteria, vocab.eos)]
    # an answer that is cut by the context ends with "length", as theirs does
    return SamplingParams(**{"overflow": "stop", **found})


def check_unset(settings: Mapping[str, Any]) -> None:
    """Raise InvalidRequest, which says why, for a setting of the constructor that has no effect here."""
    for name, (allowed, why) in ONLY_UNSET.items():
        if settings.get(name) not in allowed:
            raise InvalidRequest(f"{name}={settings[name]!r:.60} is not taken here: {why}")


def model_params(settings: Mapping[str, Any]) -> ModelParams:
    """How the model is loaded."""
    found = _given(settings, _MODEL)
    mlock, mmap = settings.get("use_mlock", False), settings.get("use_mmap", True)
    if mlock:
        found["load_mode"] = LoadMode.MMAP_MLOCK if mmap else LoadMode.MLOCK
    elif not mmap:
        found["load_mode"] = LoadMode.NONE
    return ModelParams(**found)


def context_params(settings: Mapping[str, Any]) -> ContextParams:
    """How its context is made."""
    return ContextParams(**_given(settings, _CONTEXT))


def kv_type(settings: Mapping[str, Any]) -> tuple[GGMLType, GGMLType]:
    """Types of the KV cache: libggml's numbers, F16 where none is given."""
    k, v = (settings.get(name) for name in ("type_k", "type_v"))
    return (GGMLType.F16 if k is None else GGMLType(k), GGMLType.F16 if v is None else GGMLType(v))


def flash_attention(settings: Mapping[str, Any]) -> bool | Literal["auto"]:
    """Whether flash attention is used: as `flash_attn` or libllama's number `flash_attn_type` says, if one is given."""
    if settings.get("flash_attn") is not None:
        return bool(settings["flash_attn"])
    kind = settings.get("flash_attn_type")
    return "auto" if kind is None or kind == FlashAttnType.AUTO else bool(kind)


def _given(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for name in names:
        value = settings.get(name)
        if value is None or (name in _UNSET and value == _UNSET[name]):
            continue
        kind = _KINDS.get(name)
        found[name] = kind(value) if kind is not None and isinstance(value, int) else value
    return found
