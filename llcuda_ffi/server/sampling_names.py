"""The names by which OpenAI, llama.cpp's server and vLLM know what SamplingParams has, and what they have besides."""

from __future__ import annotations

from typing import Any

# another server's name → ours
OTHER_NAMES = {
    "max_completion_tokens": "max_tokens",
    # llama.cpp
    "n_predict": "max_tokens",
    "n_keep": "keep",
    "n_cmpl": "n",
    "repeat_last_n": "penalty_last_n",
    "typ_p": "typical_p",
    "dry_sequence_breakers": "dry_breakers",
    "cache_prompt": "prefix_cache",
    # vLLM
    "repetition_penalty": "repeat_penalty",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choices",
    "guided_grammar": "grammar",
}

# about things that this server does not have, or hints that change no answer: taken without effect
WITHOUT_EFFECT = frozenset(
    {
        # OpenAI
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        # llama.cpp: the scheduler chooses the slot; timings are always given
        "id_slot",
        "n_discard",
        "n_cache_reuse",
        "return_progress",
        "sse_ping_interval",
        "timings_per_token",
        # vLLM
        "request_id",
        "spaces_between_special_tokens",
    }
)

# fields that may only say what happens anyway
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_keep": (0,),
    "n_indent": (0,),
    "post_sampling_probs": (False,),
    "parse_tool_calls": (True,),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_special_tokens": (True,),
    "return_token_ids": (False,),
    "truncate_prompt_tokens": (None,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
}

# with the reason
REFUSED = {
    "web_search_options": "this server has no web search; give a tool of your own",
    "audio": "only text is answered",
    "allowed_token_ids": "use logit_bias, choices, regex or grammar",
    "priority": "the one who runs the server sets priorities",
    "cache_salt": "prefixes are shared by all clients; send prefix_cache=false",
}

# llama.cpp's samplers in the order in which they run here → the values that turn each off
SAMPLER_OFF: dict[str, dict[str, Any]] = {
    "penalties": {"repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0},
    "dry": {"dry_multiplier": 0.0},
    "top_n_sigma": {"top_n_sigma": -1.0},
    "top_k": {"top_k": 0},
    "typ_p": {"typical_p": 1.0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "xtc": {"xtc_probability": 0.0},
    "temperature": {"temperature": 1.0},
}
