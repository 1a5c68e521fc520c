"""What coding agents send: Codex CLI to /v1/responses, Claude Code to /v1/messages, others to /v1/chat/completions."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from llcuda_ffi.server.anthropic.messages import messages_of as anthropic_messages
from llcuda_ffi.server.body import Fields
from llcuda_ffi.server.responses.items import messages_of

from ..support.server_process import MESSAGES, H, Server

R, M = "/v1/responses", "/v1/messages"
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
FIND = {"type": "function", "name": "find", "description": "Find", "strict": False, "parameters": CITY}
GROUP = {
    "type": "namespace", "name": "agents", "description": "Agents",
    "tools": [{"type": "function", "name": "spawn", "strict": False, "parameters": CITY}],
}  # fmt: skip
SEARCH = {"type": "web_search", "external_web_access": False}
OURS = {"name": "find", "description": "Find", "input_schema": CITY}
HOSTED = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}


def test_codex(server: Server) -> None:
    """Its fields are taken; functions of a group are called with its name; tools of a provider are left out."""
    asked: dict[str, Any] = {
        "input": [
            {"type": "message", "id": "m1", "role": "developer", "content": [{"type": "input_text", "text": "Brief."}]},
            {"type": "message", "id": "m2", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        ],
        "tools": [FIND, GROUP, SEARCH], "parallel_tool_calls": True, "reasoning": {"summary": "auto"}, "store": False,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "client_metadata": {"turn_id": "t"},
        "temperature": 0, "max_output_tokens": 64,
    }  # fmt: skip
    status, answer = server.post(R, **asked, tool_choice={"type": "function", "name": "spawn"})
    assert status == 200, answer
    call = answer["output"][-1]
    assert (call["type"], call["name"], call["namespace"]) == ("function_call", "spawn", "agents")
    assert [tool["type"] for tool in answer["tools"]] == ["function", "namespace"]
    events = list(server.raw_stream(R, **asked, tool_choice={"type": "function", "name": "spawn"}))
    done = events[-1]["response"]["output"][-1]
    assert (done["namespace"], done["arguments"]) == ("agents", call["arguments"])
    after = [*asked["input"], call, {"type": "function_call_output", "call_id": call["call_id"], "output": "ok"}]
    assert server.post(R, **{**asked, "input": after, "max_output_tokens": 2}, tool_choice="auto")[0] == 200


def test_codex_history() -> None:
    """Calls of custom tools are calls; searches are left out; outputs may be parts, with images."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA"}
    items = [
        {"type": "message", "role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"},
        {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "custom_tool_call", "call_id": "1", "name": "patch", "input": "*** é"},
        {"type": "custom_tool_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "done"}, image]},
    ]
    _, answer, output = messages_of(items)
    assert json.loads(answer["tool_calls"][0]["function"]["arguments"]) == {"input": "*** é"}
    assert output["content"] == [
        {"type": "text", "text": "done"},
        {"type": "image_url", "image_url": {"url": image["image_url"]}},
    ]


def test_claude_code(server: Server) -> None:
    """Its path, headers and fields; tools that Anthropic's models know are left out beside others."""
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,interleaved-thinking"}
    asked: dict[str, Any] = {
        "max_tokens": 32000, "temperature": 0, "stop_sequences": ["."], "thinking": {"type": "adaptive"},
        "system": [{"type": "text", "text": "Brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
            {"role": "system", "content": "Agents: none."},
        ],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high", "task_budget": {"type": "tokens", "total": 1000}},
        "metadata": {"user_id": "u"}, "tools": [OURS, HOSTED],
    }  # fmt: skip
    for path in (f"{M}?beta=true", f"{M}/count_tokens?beta=true"):
        status, body = server.send("POST", path, json.dumps(asked).encode(), **headers)
        assert status == 200, body
    forced = {"tools": [OURS, HOSTED], "tool_choice": {"type": "tool", "name": "web_search"}}
    status, answer = server.post(M, messages=MESSAGES, max_tokens=2, **forced)
    assert status == 400
    assert "find" in answer["error"]["message"]


def test_claude_code_history() -> None:
    """What tools gave may be images and names of tools; what Anthropic's own tools did is left out."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    result = [{"type": "text", "text": "seen"}, image, {"type": "tool_reference", "tool_name": "find"}]
    fields = Fields({"messages": [
        {"role": "assistant", "content": [
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
            {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
            {"type": "text", "text": "found"}, {"type": "tool_use", "id": "t", "name": "look", "input": {}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": result}]},
    ]})  # fmt: skip
    answer, given = anthropic_messages(fields)
    assert (answer["content"], len(answer["tool_calls"])) == ("found", 1)
    assert [part["type"] for part in given["content"]] == ["text", "image_url", "text"]
    assert given["content"][2]["text"] == "find"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (H, {"messages": [*MESSAGES, {"role": "assistant", "content": "Yes", "prefix": True}]}),
        (H, {"messages": [{"role": "assistant", "content": "a", "reasoning_details": [], "thinking_blocks": []},
                          {**MESSAGES[0], "cache_control": {"type": "ephemeral"}}]}),
        (H, {"messages": MESSAGES, "max_tokens": 2.0, "n": 1.0, "top_k": 40.0, "seed": 1.0, "model": ""}),
        (H, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1.0}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2.0, "min_tokens": 1.0}),
        ("/completion", {"prompt": "a", "n_predict": 2.0}),
        ("/v1/embeddings", {"input": "a", "dimensions": 64.0}),
    ],
)  # fmt: skip
def test_taken(server: Server, path: str, fields: dict[str, Any]) -> None:
    """Keys that providers' clients write into messages, integers written as 2.0, a model named ""."""
    short = {} if {"max_tokens", "n_predict", "dimensions"} & fields.keys() else {"max_tokens": 2}
    status, answer = server.post(path, **fields, **short)
    assert status == 200, answer


def test_any_is_required(server: Server) -> None:
    """tool_choice "any", as Mistral's clients say it."""
    tool = {"type": "function", "function": {"name": "find", "parameters": CITY}}
    answer = server.post(H, messages=MESSAGES, tools=[tool], tool_choice="any", max_tokens=64)[1]
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "find"


def test_two_limits(server: Server) -> None:
    """A limit under two names, with two values, is refused; 2.5 is no integer."""
    assert server.post(R, input="a", max_output_tokens=4, max_tokens=2)[0] == 400
    assert server.post(H, messages=MESSAGES, max_tokens=2.5)[0] == 400


def test_bodies(server: Server) -> None:
    """A compressed body is refused in words; a byte order mark is not seen."""
    body = json.dumps({"messages": MESSAGES, "max_tokens": 1}).encode()
    headers = {"Content-Encoding": "gzip"}
    status, answer = server.send("POST", H, gzip.compress(body), **headers)
    assert status == 415
    assert b"without Content-Encoding" in answer
    assert server.send("POST", H, b"\xef\xbb\xbf" + body)[0] == 200


@pytest.mark.parametrize(("path", "words"), [("/v1//models", "without /"), ("/v1/v1/models", "leave it out")])
def test_doubled_paths(server: Server, path: str, words: str) -> None:
    """The usual mistakes with a client's base_url are named."""
    status, answer = server.send("GET", path)
    assert status == 404
    assert words in json.loads(answer)["error"]["message"]
