"""Fields and paths of other servers: what their clients send has its effect, or is refused with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.generation import newer
from ..support.server_process import Server

ASK = [{"role": "user", "content": "Say hello."}]
CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
FIND = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "find", "parameters": FIND}}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"truncate_prompt_tokens": 4}, "leaving messages out"),
    (CHAT, {"chat_template": "x"}, "--chat-template"),
    (CHAT, {"best_of": 2}, "/v1/completions has best_of"),
    (CHAT, {"format": "json"}, "send response_format"),
    (CHAT, {"keep_alive": 5}, "--ttl"),
    (CHAT, {"moderation": {}}, "moderates nothing"),
    (CHAT, {"response_format": {"type": "regex", "regex": "a"}}, "settings of their own"),
    (TEXT, {"messages": ASK}, "chat/completions"),
    (TEXT, {"post_sampling_probs": True}, "before the samplers"),
    ("/v1/responses", {"background": True}, "comes with the request"),
    ("/v1/messages", {"max_tokens": 2, "thread": {"type": "create"}}, "whole conversation"),
    ("/v1/files", {}, "no files are kept"),
    ("/v1/responses/x/cancel", {}, "no background"),
    ("/api/chat", {}, "Ollama"),
    ("/v1/nothing", {}, "docs/server.md"),
]


@pytest.mark.parametrize(("path", "fields", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refused_with_what_to_do(server: Server, path: str, fields: dict[str, Any], words: str) -> None:
    """The error says why, and what to send instead."""
    body = {"messages": ASK, **fields} if path in (CHAT, "/v1/messages") else {"prompt": "a", **fields}
    if path == "/v1/responses":
        body = {"input": "a", **fields}
    status, answer = server.post(path, **body)
    assert status in (400, 404)
    assert words in answer["error"]["message"]


TAKEN: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"prompt_cache_options": {}, "reasoning_effort": "max", "include_reasoning": False, "priority": 0}),
    (CHAT, {"thinking": {"type": "disabled"}, "reasoning_budget_tokens": -1, "samplers": "kpt", "slot_id": 1}),
    (CHAT, {"enable_thinking": False, "adaptive_target": 0.5, "speculative.n_max": 4, "kv_transfer_params": {}}),
    (TEXT, {"guided_decoding_backend": "auto", "grammar_lazy": False, "t_max_prompt_ms": -1, "tfs_z": 1.0}),
    (EMBED, {"add_special_tokens": True, "embedding_type": "float", "input_type": "query", "priority": 0}),
]


@newer  # b7698 has no adaptive-p
@pytest.mark.parametrize(("path", "fields"), TAKEN, ids=range(len(TAKEN)))
def test_taken(server: Server, path: str, fields: dict[str, Any]) -> None:
    """Hints, and settings under other servers' names."""
    of = {CHAT: {"messages": ASK, "max_tokens": 2}, TEXT: {"prompt": "a", "max_tokens": 2}}
    status, answer = server.post(path, **{**of.get(path, {"input": "a"}), **fields})
    assert status == 200, answer


def test_token_ids(server: Server) -> None:
    """return_token_ids shows the prompt's and the answer's, whole and streamed; prompts are cut by their tokens."""
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "return_token_ids": True}
    whole = server.post(CHAT, messages=ASK, **asked, prompt_logprobs=1)[1]
    assert len(whole["prompt_token_ids"]) == whole["usage"]["prompt_tokens"] == len(whole["prompt_logprobs"])
    events = list(server.stream(CHAT, messages=ASK, **asked))
    assert all("finish_reason" in c for e in events for c in e["choices"])
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    sent = [t for e in events for c in e["choices"] for t in c.get("token_ids", ())]
    assert sent == whole["choices"][0]["token_ids"]
    text = server.post(TEXT, prompt="one two three four", truncate_prompt_tokens=2, **asked)[1]["choices"][0]
    pieces = list(server.stream(TEXT, prompt="one two three four", truncate_prompt_tokens=2, **asked))
    assert len(text["prompt_token_ids"]) == 2 == len(pieces[0]["choices"][0]["prompt_token_ids"])
    assert [t for e in pieces for c in e["choices"] for t in c["token_ids"]] == text["token_ids"]
    counted = server.post("/tokenize", messages=ASK, return_token_strs=True)[1]
    assert counted["tokens"] == whole["prompt_token_ids"]
    assert len(counted["token_strs"]) == counted["count"]


def test_a_forced_call_beside_a_format_of_texts(server: Server) -> None:
    """The call is made; completions take response_format too."""
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}
    answer = server.post(CHAT, messages=ASK, tools=[TOOL], tool_choice="required", response_format=form)[1]
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "find"
    assert server.post(TEXT, prompt="n:", response_format=form)[1]["choices"][0]["text"] in ("1", "2")


def test_norms_of_vectors(server: Server) -> None:
    """llama.cpp's embd_normalize, vLLM's normalize and truncate_prompt_tokens."""

    def vector(**fields: Any) -> list[float]:
        return list(server.post(EMBED, input="a b c d e f", **fields)[1]["data"][0]["embedding"])

    plain = vector(normalize=False)
    assert plain == vector(embd_normalize=-1) != vector()
    assert sum(map(abs, vector(embd_normalize=1))) == pytest.approx(1)
    assert max(map(abs, vector(embd_normalize=0))) == pytest.approx(32760)
    assert vector(truncate_prompt_tokens=4) == pytest.approx(vector(truncate_prompt_tokens=4, truncate=True))
    assert server.post(EMBED, input="a b c d e f", truncate_prompt_tokens=4)[1]["usage"]["prompt_tokens"] == 4


def test_what_anthropic_s_client_looks_for(server: Server) -> None:
    """Names of models; the code by which it sends whole conversations instead of threads."""
    listed = server.send("GET", "/v1/models", **{"anthropic-version": "2023-06-01"})[1]
    assert b"display_name" in listed
    assert b"has_more" in listed
    refused = server.post("/v1/messages", messages=ASK, max_tokens=2, thread={"type": "create"})[1]
    assert refused["error"]["details"]["error_code"] == "thread_unsupported_request"
