"""POST /v1/responses: items, events, tools, structured output, going on from an earlier response."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llcuda_ffi.chat.results import ChatChunk
from llcuda_ffi.server.errors import Refused
from llcuda_ffi.server.responses.items import messages_of
from llcuda_ffi.server.responses.output import OutputWriter
from llcuda_ffi.server.responses.store import ResponseStore

from ..support.server_process import H, Server

R = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}


def test_whole_is_the_chat(server: Server) -> None:
    """The text is that of the same chat; status, usage and the repeated fields are OpenAI's."""
    asked = {"temperature": 0, "max_tokens": 8}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    chat = server.post(H, messages=messages, **asked)[1]
    status, answer = server.post(R, instructions="Be brief.", input="Say hello.", temperature=0, max_output_tokens=8)
    assert status == 200, answer
    assert answer["object"] == "response"
    (item,) = answer["output"]
    assert item["type"] == "message"
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert answer["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    if chat["choices"][0]["finish_reason"] == "length":
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    count = server.post(f"{R}/input_tokens", instructions="Be brief.", input="Say hello.")[1]["input_tokens"]
    assert count == answer["usage"]["input_tokens"]


def test_stream_tells_the_whole(server: Server) -> None:
    """Events are numbered in order; deltas join to the item; the last event holds the whole response."""
    asked: dict[str, Any] = {
        "input": "Say hello.",
        "temperature": 0,
        "max_output_tokens": 8,
        "include": ["message.output_text.logprobs"],
    }
    whole = server.post(R, **asked)[1]
    events = list(server.raw_stream(R, **asked))
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    kinds = [e["type"] for e in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert text == last["output"][0]["content"][0]["text"] == whole["output"][0]["content"][0]["text"]
    assert len(last["output"][0]["content"][0]["logprobs"]) == last["usage"]["output_tokens"]
    assert last["output"][0] == events[-2]["item"]


def test_tool_call_and_its_result(server: Server) -> None:
    """A forced call is an item that parses, whole and streamed; its result goes back as an item of the next request."""
    asked: dict[str, Any] = {
        "input": "Weather in Rome?", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"},
        "temperature": 0, "max_output_tokens": 200,
    }  # fmt: skip
    answer = server.post(R, **asked)[1]
    call = answer["output"][-1]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert json.loads(call["arguments"])["city"] in ("Paris", "Rome")
    events = list(server.raw_stream(R, **asked))
    pieces = [e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"]
    done = [e["arguments"] for e in events if e["type"] == "response.function_call_arguments.done"]
    assert "".join(pieces) == done[0] == call["arguments"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    status, after = server.post(
        R, input=[result], previous_response_id=answer["id"], tools=[WEATHER], max_output_tokens=4
    )
    assert status == 200, after
    assert after["usage"]["input_tokens"] > answer["usage"]["input_tokens"]


def test_structured(server: Server) -> None:
    """text.format gives JSON of the schema."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "name": "person", "schema": schema}
    answer = server.post(R, input="How old?", text={"format": form}, max_output_tokens=64, seed=1)[1]
    assert isinstance(json.loads(answer["output"][0]["content"][0]["text"])["age"], int)


def test_kept_and_forgotten(server: Server) -> None:
    """A response is found by its id until it is deleted; one that was not to be kept never is."""
    answer = server.post(R, input="Hi", max_output_tokens=2)[1]
    name = answer["id"]
    assert json.loads(server.send("GET", f"{R}/{name}")[1])["output"] == answer["output"]
    items = json.loads(server.send("GET", f"{R}/{name}/input_items")[1])["data"]
    assert items[0]["content"] == "Hi"
    longer = server.post(R, input="And?", previous_response_id=name, max_output_tokens=2)[1]
    assert longer["usage"]["input_tokens"] > answer["usage"]["input_tokens"]
    assert json.loads(server.send("DELETE", f"{R}/{name}")[1])["deleted"]
    assert server.send("GET", f"{R}/{name}")[0] == 404
    assert server.post(R, input="And?", previous_response_id=name)[0] == 404
    other = server.post(R, input="Hi", max_output_tokens=2, store=False)[1]["id"]
    assert server.send("GET", f"{R}/{other}")[0] == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"input": 1}, {"input": [1]}, {"input": [{"type": "item_reference", "id": "x"}]}, {"input": "a", "sruprise": 1},
        {"input": "a", "tools": [{"type": "web_search"}]}, {"input": "a", "background": True},
        {"input": "a", "conversation": "c"}, {"input": "a", "include": ["x"]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": "a", "text": {"format": {"type": "x"}}}, {"input": "a", "n": 2}, {"input": "long " * 2000},
        {"input": "a", "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": 0}}}},
        {"input": [{"role": "assistant", "content": [{"type": "output_text", "text": None}]}]},
        {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text"}]}]},
        {"input": "a", "tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": 1}},
    ],
)  # fmt: skip
def test_refused(server: Server, fields: dict[str, Any]) -> None:
    """What cannot be done is a 400 in OpenAI's form, streamed or not."""
    for stream in (False, True):
        status, answer = server.post(R, **fields, stream=stream)
        assert status == 400, answer
        assert answer["error"]["type"] == "invalid_request_error"


def test_items_by_their_ids(server: Server) -> None:
    """An item_reference stands for an item of an earlier answer, as AI SDK sends its history."""
    user = {"role": "user", "content": "Say hello."}
    asked: dict[str, Any] = {"temperature": 0, "max_output_tokens": 2}
    (item,) = server.post(R, input=[user], **asked)[1]["output"]
    more = {"role": "user", "content": "And?"}
    whole = server.post(R, input=[user, item, more], **asked)[1]
    status, answer = server.post(R, input=[user, {"type": "item_reference", "id": item["id"]}, more], **asked)
    assert status == 200, answer
    assert answer["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_log_probabilities_of_all_tokens() -> None:
    """Those of tokens that wrote no text (reasoning, the end) come with the next text, or with the text's end."""
    writer = OutputWriter()
    chunks = [ChatChunk("i", 0, "m", reasoning_content="hm"), ChatChunk("i", 0, "m", "a"), ChatChunk("i", 0, "m")]
    events = [event for i, chunk in enumerate(chunks) for event in writer.feed(chunk, [i])] + writer.close()
    texts = [e for e in events if e["type"] == "response.output_text.delta"]
    assert [(e["delta"], e["logprobs"]) for e in texts] == [("a", [0, 1]), ("", [2])]
    assert writer.items[-1]["content"][0]["logprobs"] == [0, 1, 2]


def test_items_to_messages() -> None:
    """Reasoning, text and calls in a row are one message of the assistant; results are messages of tools."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "function_call_output", "call_id": "c2", "output": "2"},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
    ]
    system, user, answer, first, second, one, two = messages_of(items, "be kind")
    assert (system["role"], user["content"]) == ("system", [{"type": "text", "text": "hi"}])
    assert (answer["content"], answer["reasoning_content"]) == ("wait", "hm")
    assert [c["id"] for c in answer["tool_calls"]] == ["c1", "c2"]
    assert (first["content"], second["tool_call_id"]) == ("1", "c2")
    assert [one["content"], two["content"]] == ["one", "two"]


def test_store_is_bounded() -> None:
    """The oldest go when there are too many or they take too much; a key sees only its own."""

    async def keep() -> None:
        store = ResponseStore(most=3)
        for i in range(5):
            await store.put("a", {"id": f"r{i}", "output": [{"id": f"i{i}"}]}, [])
        assert await store.items("a", ["i1", "i4", 4]) == [None, {"id": "i4"}, None]
        assert await store.items("b", ["i4"]) == [None]
        await store.delete("a", "r3")
        assert await store.items("a", ["i3"]) == [None]
        assert (await store.get("a", "r4")).response["id"] == "r4"
        for key, name in (("a", "r1"), ("b", "r4"), (None, "r4"), ("a", ["r4"])):
            with pytest.raises(Refused):
                await store.get(key, name)
        small = ResponseStore(characters=500)
        await small.put(None, {"id": "x"}, [{"content": "c" * 300}])
        await small.put(None, {"id": "y"}, [{"content": "c" * 300}])
        assert await small.get(None, "y")
        with pytest.raises(Refused):
            await small.get(None, "x")

    asyncio.run(keep())
