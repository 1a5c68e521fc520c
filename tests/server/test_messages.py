"""POST /v1/messages: Anthropic's shapes, whole and streamed."""

from __future__ import annotations

from typing import Any

import pytest

from llcuda_ffi.chat.parsing.deltas import CallDelta
from llcuda_ffi.chat.results import ChatChunk
from llcuda_ffi.server.anthropic.blocks import BlockWriter
from llcuda_ffi.server.anthropic.messages import messages_of
from llcuda_ffi.server.body import Fields

from ..support.server_process import MESSAGES, H, Server

M = "/v1/messages"
WEATHER = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}


def test_whole_is_the_chat(server: Server) -> None:
    """The text is that of the same chat; the end and the usage are Anthropic's; counting gives the prompt's tokens."""
    chat = server.post(H, messages=MESSAGES, temperature=0, max_tokens=8)[1]
    status, answer = server.post(M, model="smol", messages=MESSAGES, temperature=0, max_tokens=8)
    assert status == 200, answer
    assert (answer["type"], answer["role"]) == ("message", "assistant")
    assert answer["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
    expected = {"stop": "end_turn", "length": "max_tokens"}[chat["choices"][0]["finish_reason"]]
    assert answer["stop_reason"] == expected
    count = server.post(f"{M}/count_tokens", messages=MESSAGES)[1]["input_tokens"]
    usage = answer["usage"]
    assert count == usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]


def test_stream_tells_the_whole(server: Server) -> None:
    """Start, blocks, deltas and ends in Anthropic's order; the text is that of the whole answer."""
    asked: dict[str, Any] = {
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 8,
    }
    whole = server.post(M, **asked)[1]
    events = list(server.raw_stream(M, **asked))
    kinds = [e["type"] for e in events if e["type"] not in ("ping", "content_block_delta")]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    text = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]
    delta = events[-2]
    assert delta["delta"]["stop_reason"] == whole["stop_reason"]
    assert delta["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_stop_sequence(server: Server) -> None:
    """A stop string that ended the answer is named."""
    chat = server.post(H, messages=MESSAGES, temperature=0, max_tokens=12)[1]["choices"][0]["message"]["content"]
    stop = chat[3:6]
    asked: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, "stop_sequences": [stop]}
    answer = server.post(M, **asked)[1]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    assert list(server.raw_stream(M, **asked))[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": stop}


def test_tools(server: Server) -> None:
    """A forced tool is used with input of its schema, whole and streamed; its result is taken."""
    asked: dict[str, Any] = {
        "messages": MESSAGES, "tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}, "max_tokens": 200,
        "seed": 1,
    }  # fmt: skip
    answer = server.post(M, **asked)[1]
    use = answer["content"][-1]
    assert (answer["stop_reason"], use["type"], use["name"]) == ("tool_use", "tool_use", "weather")
    assert use["input"]["city"] in ("Paris", "Rome")
    events = list(server.raw_stream(M, **asked))
    starts = [e["content_block"] for e in events if e["type"] == "content_block_start"]
    assert starts[-1]["name"] == "weather"
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": [{"type": "text", "text": "sunny"}]}
    after = [*MESSAGES, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result]}]
    assert server.post(M, messages=after, tools=[WEATHER], max_tokens=2)[0] == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": MESSAGES}, {"max_tokens": 1}, {"messages": [{"role": "tool", "content": "x"}], "max_tokens": 1},
        {"messages": [{"role": "user", "content": [{"type": "video"}]}], "max_tokens": 1},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}], "max_tokens": 1},
        {"messages": MESSAGES, "max_tokens": 1, "tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"messages": MESSAGES, "max_tokens": 1, "tool_choice": {"type": "any"}},
        {"messages": MESSAGES, "max_tokens": 1, "surprise": 1}, {"messages": MESSAGES, "max_tokens": 1, "n": 2},
        {"messages": MESSAGES, "max_tokens": 1, "output_config": {"format": "json"}},
        {"messages": MESSAGES, "max_tokens": 1, "thinking": {"type": "enabled", "budget_tokens": "many"}},
    ],
)  # fmt: skip
def test_refused(server: Server, fields: dict[str, Any]) -> None:
    """Errors have Anthropic's form, with the id of the request."""
    for stream in (False, True):
        status, answer = server.post(M, **fields, stream=stream)
        assert status == 400, answer
        assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
        assert answer["request_id"]
    assert server.post(M, model="none", messages=MESSAGES, max_tokens=1)[1]["error"]["type"] == "not_found_error"


def test_blocks_to_messages() -> None:
    """Thinking, text and tool use are one message of the assistant; results come before the user's text."""
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "wait"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
    ]  # fmt: skip
    results = [
        {"type": "text", "text": "and?"},
        {"type": "tool_result", "tool_use_id": "t1", "content": "bad", "is_error": True},
    ]
    given = [{"role": "assistant", "content": blocks}, {"role": "user", "content": results}]
    answer, tool, user = messages_of(Fields({"messages": given}))
    assert (answer["content"], answer["reasoning_content"]) == ("wait", "hm")
    assert answer["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert (tool["tool_call_id"], tool["content"]) == ("t1", "Error: bad")
    assert user["content"] == [{"type": "text", "text": "and?"}]


def test_thinking_is_a_block_of_its_own() -> None:
    """Thinking, text and two calls are four blocks, each begun and ended once, in order."""

    def chunk(content: str = "", reasoning: str = "", call: CallDelta | None = None) -> ChatChunk:
        return ChatChunk("i", 0, "m", content, reasoning, [call] if call else [])

    writer = BlockWriter()
    pieces = [
        chunk(reasoning="a"), chunk(reasoning="b"), chunk("c"), chunk(call=CallDelta(0, "f", "1", "")),
        chunk(call=CallDelta(0, arguments="{}")), chunk(call=CallDelta(1, "g", "2", "{}")),
    ]  # fmt: skip
    events = [event for piece in pieces for event in writer.feed(piece)] + writer.close()
    kinds = [(e["type"].removeprefix("content_block_"), e["index"]) for e in events]
    starts = [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]
    assert [kind for kind in kinds if kind[0] != "delta"] == [
        ("start", 0), ("stop", 0), ("start", 1), ("stop", 1), ("start", 2), ("stop", 2), ("start", 3), ("stop", 3),
    ]  # fmt: skip
