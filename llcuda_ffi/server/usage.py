"""Counts, times and ends of completions as the answers have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..chat.results import usage_dict
from ..engine.results import Timings, Usage
from .body import Fields

# a request that ran out of time ends as one that ran out of tokens: OpenAI has no other word
FINISH = {"eog": "stop", "stop": "stop", "length": "length", "cancelled": "length", "tool_calls": "tool_calls"}


def stream_options(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and to give the usage at its end."""
    stream = fields.flag("stream", False)
    options = Fields(fields.mapping("stream_options"), fields.lenient)
    with_usage = options.flag("include_usage", False)
    options.take("include_obfuscation")
    options.take("continuous_usage_stats")
    options.end()
    return stream, with_usage


def timings_dict(timings: Timings, usage: Usage) -> dict[str, Any]:
    """The engine's timings in seconds, and the same under llama.cpp's names, in milliseconds."""
    computed, generated = usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
    prompt_ms, decode_ms = 1000 * timings.prompt_s, 1000 * timings.decode_s
    return {
        **dataclasses.asdict(timings),
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / max(1, computed),
        "prompt_per_second": 1000 * computed / prompt_ms if prompt_ms else 0.0,
        "predicted_n": generated,
        "predicted_ms": decode_ms,
        "predicted_per_token_ms": decode_ms / max(1, generated - 1),
        "predicted_per_second": timings.tokens_per_s,
        "draft_n": timings.drafted,
        "draft_n_accepted": timings.accepted,
    }


def total(usages: Sequence[Usage], n: int) -> dict[str, Any]:
    """The usage of completions, n for each prompt, which is counted once."""
    return usage_dict(
        Usage(
            sum(u.prompt_tokens for u in usages[::n]),
            sum(u.cached_tokens for u in usages[::n]),
            sum(u.completion_tokens for u in usages),
        )
    )
