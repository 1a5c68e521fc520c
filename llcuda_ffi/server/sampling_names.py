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
    "adaptive_target": "adaptive_p_target",
    "adaptive_decay": "adaptive_p_decay",
    "reasoning_budget": "max_reasoning_tokens",
    "reasoning_budget_tokens": "max_reasoning_tokens",
    "thinking_budget_tokens": "max_reasoning_tokens",
    # vLLM
    "repetition_penalty": "repeat_penalty",
    "thinking_token_budget": "max_reasoning_tokens",
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
        "prompt_cache_options",
        "prompt_cache_retention",
        "prediction",
        # llama.cpp: the scheduler chooses the slot, the server how drafts are made; timings are always given
        "id_slot",
        "slot_id",
        "n_discard",
        "n_cache_reuse",
        "return_progress",
        "sse_ping_interval",
        "timings_per_token",
        "backend_sampling",
        "speculative.n_max",
        "speculative.n_min",
        "speculative.p_min",
        # vLLM
        "request_id",
        "spaces_between_special_tokens",
        "guided_decoding_backend",
    }
)

# fields that may only say what happens anyway, and why nothing else
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    # llama.cpp
    "min_keep": ((0,), "a sampler keeps one token at least"),
    "n_indent": ((0,), "send a stop"),
    "t_max_prompt_ms": ((-1, 0), "timeout ends a request"),
    "post_sampling_probs": ((False,), "log probabilities are the model's, before the samplers"),
    "parse_tool_calls": ((True,), "without tools the answer is plain text"),
    "reasoning_in_content": ((False,), "reasoning_format='none' leaves reasoning in the content"),
    "thinking_forced_open": ((False,), "the template opens reasoning"),
    "grammar_lazy": ((False,), "a grammar holds from the first token; forced calls begin theirs by themselves"),
    "grammar_triggers": (([],), "a grammar holds from the first token"),
    "preserved_tokens": (([],), "the parser knows the tokens that it needs"),
    "penalize_nl": ((False,), "penalties are for all tokens: logit_bias can spare one"),
    "use_penalty_prompt_tokens": ((False,), "penalties look at the last penalty_last_n tokens of prompt and answer"),
    "tfs_z": ((1.0,), "llama.cpp has this sampler no more: top_p, min_p and typical_p are there"),
    "image_data": (([],), "the messages of a chat may have images"),
    "verbose": ((False,), "/slots and /metrics tell what runs"),
    # vLLM
    "priority": ((0,), "the one who runs the server sets priorities"),
    "use_beam_search": ((False,), "llcuda_ffi.engine.beam_search searches beams, in Python"),
    "length_penalty": ((1.0,), "llcuda_ffi.engine.beam_search searches beams, in Python"),
    "skip_special_tokens": ((True,), "control tokens have no text: return_token_ids=true gives their ids"),
    "detokenize": ((True,), "return_token_ids=true gives the ids beside the text"),
    "add_special_tokens": ((False,), "a chat's template writes them"),
    "return_tokens_as_token_ids": ((False,), "return_token_ids=true gives the ids"),
    "truncate_prompt_tokens": ((), "a chat is cut by leaving messages out"),
    "logits_processors": (([],), "functions do not travel: logit_bias, grammar and regex do"),
    "best_of": ((1,), "a chat has n; /v1/completions has best_of"),
    "echo": ((False,), "a chat's messages are the client's own; /v1/completions has echo"),
    "guided_whitespace_pattern": ((), "give a regex or a grammar"),
    "mm_processor_kwargs": (({},), "the projector's settings are the server's"),
    "media_io_kwargs": (({},), "the projector's settings are the server's"),
    "kv_transfer_params": (({},), "there is one KV cache"),
    "vllm_xargs": (({},), "nothing reads it"),
}

# with the reason
REFUSED = {
    "web_search_options": "this server has no web search; give a tool of your own",
    "audio": "only text is answered",
    "moderation": "this server moderates nothing: ask a model of your choice",
    "cache_salt": "prefixes are shared by all clients; send prefix_cache=false",
    "chat_template": "the one who runs the server gives templates (--chat-template); chat_template_kwargs are yours",
    "prompt_embeds": "prompts are texts or token ids",
}

# fields of other servers that nobody here knows: what to send instead
INSTEAD = {
    "extra_body": "its fields beside the others",
    "format": "response_format",
    "input": "messages or prompt (input is a field of /v1/responses and /v1/embeddings)",
    "keep_alive": "nothing: serve --ttl says how long an idle model stays",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "messages": "prompt (messages go to /v1/chat/completions)",
    "n_ctx": "nothing: serve --ctx sets the context",
    "num_ctx": "nothing: serve --ctx sets the context",
    "num_predict": "max_tokens",
    "options": "its settings as fields of their own",
    "prompt": "messages (prompt goes to /v1/completions)",
    "reasoning": "reasoning_effort, or chat_template_kwargs={'enable_thinking': …}",
    "response_fields": "the same to /completion",
    "return_tokens": "return_token_ids",
    "stop_sequences": "stop",
    "system_prompt": "a message of the role system",
    "think": "chat_template_kwargs={'enable_thinking': …}",
    "usage": "stream_options={'include_usage': true}",
    "include_usage": "stream_options={'include_usage': true}",
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

# the same as letters in one text, llama.cpp's short form
SAMPLER_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
}
