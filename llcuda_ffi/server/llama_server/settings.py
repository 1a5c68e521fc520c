"""SamplingParams under llama.cpp's names, as its answers and /props show them."""

from __future__ import annotations

import math
from typing import Any

from ...sampling_params import SamplingParams
from ..sampling_names import SAMPLER_OFF

_SAME = (
    "temperature",
    "dynatemp_range",
    "dynatemp_exponent",
    "top_k",
    "top_p",
    "min_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "ignore_eos",
)


def generation_settings(params: SamplingParams, seed: int | None = None) -> dict[str, Any]:
    """The settings of a completion; `seed` is the one that was drawn."""
    limit = -1 if params.max_tokens is None else params.max_tokens
    return {
        **{name: getattr(params, name) for name in _SAME},
        "n_predict": limit,
        "max_tokens": limit,
        "seed": seed if seed is not None else 2**32 - 1,
        "repeat_last_n": params.penalty_last_n,
        "n_keep": params.keep,
        "stop": list(params.stop or ()),
        "dry_sequence_breakers": list(params.dry_breakers),
        "grammar": params.grammar or "",
        "logit_bias": [
            {"token": token, "bias": bias if math.isfinite(bias) else None}
            for token, bias in (params.logit_bias or {}).items()
        ],
        "adaptive_target": params.adaptive_p_target,
        "adaptive_decay": params.adaptive_p_decay,
        "n_probs": params.logprobs or 0,
        "samplers": list(SAMPLER_OFF),
    }
