"""The HTTP server: a real process, the real model, OpenAI's answers; and what must not bring it down."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Embedder
from llcuda_ffi.engine.results import TokenLogprob
from llcuda_ffi.server.token_logprobs import CompletionLogprobs
from llcuda_ffi.server.tool_fields import as_function_call

from ..support.server_process import JSON, MESSAGES, ROOT, C, H, Server


def test_completions(server: Server) -> None:
    """Texts, lists, token ids, n, stop and log probabilities as OpenAI writes them; equal seeds give equal texts."""
    status, one = server.post("/v1/completions", model="smol", prompt="The capital of France is", max_tokens=8, seed=-5)
    assert (status, one["object"], one["model"]) == (200, "text_completion", "smol")
    assert one["usage"]["completion_tokens"] == 8
    assert one["choices"][0]["finish_reason"] == "length"
    ids = server.post("/tokenize", content="The capital of France is", add_special=True)[1]["tokens"]
    again = server.post("/v1/completions", prompt=ids, max_tokens=8, seed=-5)[1]
    assert again["choices"][0]["text"] == one["choices"][0]["text"]
    assert server.post("/detokenize", tokens=ids)[1]["content"] == "The capital of France is"
    many = server.post("/v1/completions", prompt=["One", "Two"], n=2, max_tokens=2, logprobs=3, temperature=0)[1]
    assert [c["index"] for c in many["choices"]] == [0, 1, 2, 3]
    assert many["choices"][0]["text"] == many["choices"][1]["text"] != many["choices"][2]["text"]
    logprobs = many["choices"][0]["logprobs"]
    assert logprobs["tokens"][0] == max(logprobs["top_logprobs"][0], key=logprobs["top_logprobs"][0].get)
    assert "".join(logprobs["tokens"]) == many["choices"][0]["text"]
    banned = {str(ids[0]): -100, "0": 1.5}
    done = server.post("/v1/completions", prompt="a b c d e", stop=" f", logit_bias=banned, max_tokens=64)[1]
    assert done["choices"][0]["finish_reason"] in ("stop", "length")


def test_loglikelihood(server: Server) -> None:
    """`echo` with `logprobs` and max_tokens=0 gives those that the prompt's tokens had when they were generated."""
    asked = {"temperature": 0, "logprobs": 1}
    start = "The capital of France is"
    ids = server.post("/tokenize", content=start, add_special=True)[1]["tokens"]
    made = server.post(C, prompt=start, max_tokens=6, **asked)[1]["choices"][0]
    whole = start + made["text"]
    status, answer = server.post(C, prompt=whole, max_tokens=0, echo=True, **asked)
    assert status == 200, answer
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == whole == "".join(logprobs["tokens"])
    assert logprobs["token_logprobs"][0] is None
    np.testing.assert_allclose(logprobs["token_logprobs"][len(ids) :], made["logprobs"]["token_logprobs"], atol=5e-2)
    assert logprobs["text_offset"][len(ids)] == len(start)
    assert all(
        max(top, key=top.get) == t
        for t, top in zip(logprobs["tokens"][len(ids) :], logprobs["top_logprobs"][len(ids) :], strict=True)
    )
    assert answer["usage"]["completion_tokens"] == 0
    pieces = [c for e in server.stream(C, prompt=start, max_tokens=3, echo=True, temperature=0) for c in e["choices"]]
    assert (
        "".join(c["text"] for c in pieces)
        == server.post(C, prompt=start, max_tokens=3, echo=True, temperature=0)[1]["choices"][0]["text"]
    )
    vllm = server.post(C, prompt=start, max_tokens=1, prompt_logprobs=2)[1]["choices"][0]["prompt_logprobs"]
    assert vllm[0] is None
    assert str(ids[1]) in vllm[1]


def test_streamed_offsets(server: Server) -> None:
    """text_offset of streamed chunks goes on where the chunk before ended."""
    choices = [
        c for e in server.stream(C, prompt="One, two", max_tokens=6, logprobs=0, temperature=0) for c in e["choices"]
    ]
    entries = [
        (t, at)
        for c in choices
        if c["logprobs"]
        for t, at in zip(c["logprobs"]["tokens"], c["logprobs"]["text_offset"], strict=True)
    ]
    text = "".join(c["text"] for c in choices)
    assert len(entries) == 6
    assert all(text[at : at + len(token)] == token for token, at in entries)


def test_offsets_after_half_characters() -> None:
    """A token after bytes that are no character stands behind their U+FFFD; one that ends a character, at its start."""
    pieces = [b"\xc3", b"j", b"\xc3", b"\xa9", b"!"]  # the text is "\ufffdj\xe9!"
    logprobs = CompletionLogprobs()
    found = [logprobs.to_dict([TokenLogprob(0, piece, -1.0)])["text_offset"][0] for piece in pieces]
    assert found == [0, 1, 2, 2, 3]


def test_stream_is_what_the_whole_is(server: Server) -> None:
    """Pieces of streamed completions and chats join to the whole answers; usage stands in the last event."""
    asked = {"max_tokens": 12, "seed": 3, "n": 2, "stream_options": {"include_usage": True}}
    whole = server.post("/v1/completions", prompt="Once upon", max_tokens=12, seed=3, n=2)[1]
    events = list(server.stream("/v1/completions", prompt="Once upon", **asked))
    for i in (0, 1):
        text = "".join(c["text"] for e in events for c in e["choices"] if c["index"] == i)
        assert text == whole["choices"][i]["text"]
        ends = [c for e in events for c in e["choices"] if c["index"] == i and c["finish_reason"]]
        assert [c["stop_reason"] for c in ends] == [whole["choices"][i]["stop_reason"]]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(e["usage"] is None for e in events[:-1])
    whole = server.post("/v1/chat/completions", messages=MESSAGES, max_tokens=12, seed=3, n=2)[1]
    assert whole["choices"][0]["message"]["role"] == "assistant"
    events = list(server.stream("/v1/chat/completions", messages=MESSAGES, **asked))
    for i in (0, 1):
        mine = [c for e in events for c in e["choices"] if c["index"] == i]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content") or "" for c in mine) == whole["choices"][i]["message"]["content"]
        assert mine[-1]["finish_reason"] == whole["choices"][i]["finish_reason"]


def test_an_event_is_one_line_to_every_client(server: Server) -> None:
    """httpx's iter_lines, for one, ends lines at Unicode's line ends too."""
    text = "a\u2028b\x85c\u2029d é"
    body = json.dumps({"prompt": "a", "choices": [text], "stream": True}).encode()
    lines = [line for line in server.send("POST", C, body)[1].decode().splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    found = [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]]
    assert "".join(found) == text


def test_first_piece_comes_before_the_end(server: Server) -> None:
    """When the first event is here, the request still runs."""
    stream = server.stream("/v1/completions", prompt="Once upon", max_tokens=400, ignore_eos=True)
    assert next(stream)["choices"][0]["finish_reason"] is None
    assert server.metric("running") == 1
    stream.close()  # type: ignore[attr-defined]
    server.settled()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_slot(server: Server, path: str, stream: bool) -> None:
    """A client that leaves cancels its request, streamed or not, and the slot is free."""
    before = server.metric("cancelled_total")
    connection = server.connect()
    fields = {"prompt": "Once upon"} if path == "/v1/completions" else {"messages": MESSAGES}
    body = json.dumps({**fields, "max_tokens": 450, "ignore_eos": True, "stream": stream})
    connection.request("POST", path, body, JSON)
    if stream:
        connection.getresponse().readline()
    while not server.metric("running"):
        assert server.metric("cancelled_total") == before
    connection.close()
    if connection.sock is not None:
        connection.sock.close()
    server.settled()
    assert server.metric("cancelled_total") == before + 1


def test_sixteen_clients_share_the_batch(server: Server) -> None:
    """Sixteen streams at once are computed in far fewer batches than one after another, and all are right."""
    alone = server.post("/v1/completions", prompt="Once upon", max_tokens=24, temperature=0)[1]["choices"][0]["text"]
    server.settled()
    batches, tokens = server.metric("batches_total"), server.metric("completion_tokens_total")
    start = threading.Barrier(16)

    def client(_: int) -> str:
        start.wait()
        events = server.stream("/v1/completions", prompt="Once upon", max_tokens=24, temperature=0)
        return "".join(e["choices"][0]["text"] for e in events)

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(client, range(16)))
    server.settled()
    assert all(text[:20] == alone[:20] for text in texts)
    made = server.metric("completion_tokens_total") - tokens
    assert made == 16 * 24
    assert server.metric("batches_total") - batches < made / 2


def test_structured_and_tools(server: Server) -> None:
    """response_format gives JSON of the schema; tool_choice gives a call that parses, whole and streamed."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    status, answer = server.post("/v1/chat/completions", messages=MESSAGES, response_format=form, max_tokens=64, seed=1)
    assert status == 200
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["age"], int)
    place = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": place}}]
    asked = {"messages": MESSAGES, "tools": tools, "tool_choice": "required", "max_tokens": 200, "seed": 1}
    choice = server.post("/v1/chat/completions", **asked)[1]["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]["function"]
    assert call["name"] == "weather"
    assert json.loads(call["arguments"])["city"] in ("Paris", "Rome")
    pieces = [
        c["delta"].get("tool_calls") for e in server.stream("/v1/chat/completions", **asked) for c in e["choices"]
    ]
    first = [p[0] for p in pieces if p and p[0]["index"] == 0]
    assert first[0]["function"]["name"] == "weather"
    assert "".join(p["function"]["arguments"] for p in first) == call["arguments"]


def test_older_functions_and_allowed_tools(server: Server) -> None:
    """`functions` give a function_call; allowed_tools leaves only the tools that it names."""
    functions = [{"name": name, "parameters": {"type": "object", "properties": {}}} for name in ("now", "later")]
    asked = {"messages": MESSAGES, "max_tokens": 100, "seed": 1}
    choice = server.post(H, functions=functions, function_call={"name": "now"}, **asked)[1]["choices"][0]
    assert (choice["finish_reason"], choice["message"]["function_call"]["name"]) == ("function_call", "now")
    tools = [{"type": "function", "function": f} for f in functions]
    only = {"mode": "required", "tools": [{"type": "function", "function": {"name": "later"}}]}
    choice = server.post(H, tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": only}, **asked)[1]
    assert choice["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "later"


def test_one_function_call() -> None:
    """The older form has one call: of a second one nothing shows, in no delta of a stream either."""
    delta: dict[str, Any] = {"tool_calls": [{"index": 1, "function": {"name": "b", "arguments": "{}"}}]}
    as_function_call(delta)
    assert delta == {}
    delta = {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}
    as_function_call(delta)
    assert delta == {"function_call": {"arguments": "{"}}


def test_chat_logprobs(server: Server) -> None:
    """Each token has its log probability and the likeliest ones as texts."""
    answer = server.post("/v1/chat/completions", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2)[1]
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    for entry in content:
        assert len(entry["top_logprobs"]) == 2
        assert all(bytes(t["bytes"]).decode("utf-8", "replace") == t["token"] for t in entry["top_logprobs"])


def test_embeddings(server: Server, minilm: Path) -> None:
    """Both formats hold the vectors of Embedder, also cut to a dimension; usage counts the tokens."""
    texts = ["a cat", "a dog", "the national debt"]
    with Embedder(minilm) as embedder:
        expected = embedder.encode(texts)
    status, answer = server.post("/v1/embeddings", model="all-minilm-l6-v2-f16", input=texts)
    if status == 404:  # the file's own name is the model's
        answer = server.post("/v1/embeddings", input=texts)[1]
    assert answer["usage"]["prompt_tokens"] > 8
    np.testing.assert_allclose([d["embedding"] for d in answer["data"]], expected, atol=1e-3)
    packed = server.post("/v1/embeddings", input=texts[0], encoding_format="base64")[1]["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), expected[0], atol=1e-3)
    assert len(server.post("/v1/embeddings", input="a", dimensions=16)[1]["data"][0]["embedding"]) == 16
    assert server.post("/v1/embeddings", input="word " * 5000)[1]["error"]["code"] == "context_length_exceeded"


def test_models(server: Server) -> None:
    """Both models are listed; another name is 404, also where it would generate."""
    status, body = server.send("GET", "/v1/models")
    names = [m["id"] for m in json.loads(body)["data"]]
    assert (status, names[0], len(names)) == (200, "smol", 2)
    assert server.send("GET", "/v1/models/smol")[0] == 200
    assert server.send("GET", "/v1/models/other")[0] == 404
    assert server.post("/v1/completions", model="other", prompt="a")[1]["error"]["code"] == "model_not_found"
    assert server.post("/v1/completions", model=names[1], prompt="a")[0] == 400
    assert server.post("/v1/embeddings", model="smol", input="a")[0] == 400


def test_other_refusals(server: Server) -> None:
    """Paths, methods, types and sizes have their own statuses; a stated length is refused before it is sent."""
    assert server.send("GET", "/nowhere")[0] == 404
    assert server.send("GET", C)[0] == 405
    assert server.send("POST", C, b"{}", **{"Content-Type": "text/plain"})[0] == 415
    connection = server.connect()
    connection.putrequest("POST", C)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "error" in json.loads(answer.read())
    connection.close()
    assert "access-control-allow-origin" not in server.headers("/health", Origin="http://example.com")


def test_alive_after_all(server: Server) -> None:
    """After all of the above nothing is left running, nothing failed, and it answers."""
    server.settled()
    assert server.metric("failed_total") == 0
    assert server.post(C, prompt="a", max_tokens=1)[0] == 200


def test_queue_key_and_stop(smollm2: Path, tmp_path: Path) -> None:
    """Without the key 401; a full queue is 503; SIGTERM lets the running answer end, then the exit status is 0."""
    server = Server(
        tmp_path / "log", smollm2, "-c", 512, "--parallel", 1, "--max-queue", 0, "--api-key", "geheim ü",
        "--cors-origin", "https://example.org",
    )  # fmt: skip
    try:
        key = {"Authorization": "Bearer geheim ü".encode().decode("latin-1")}
        assert server.send("GET", "/v1/models")[0] == 401
        assert json.loads(server.send("POST", C, b"{}", Authorization="Bearer x")[1])["error"]["type"] == (
            "authentication_error"
        )
        origin = {"Origin": "https://example.org"}
        assert "access-control-allow-origin" in server.headers("/health", **origin)
        # the preflight of openai-js passes without the key, and other ways to send the key are taken
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-stainless-os"}
        assert server.headers(C, "OPTIONS", **origin, **asked)["access-control-allow-headers"] == "x-stainless-os"
        raw = key["Authorization"].removeprefix("Bearer ")
        for header in ({"Authorization": f"bearer {raw}"}, {"X-Api-Key": raw}):
            assert server.send("GET", "/v1/models", **header)[0] == 200
        connection = server.connect()
        body = json.dumps({"prompt": "Once", "max_tokens": 100, "ignore_eos": True, "stream": True})
        connection.request("POST", C, body, {**JSON, **key})
        answer = connection.getresponse()
        answer.readline()
        status, refused = server.send("POST", C, b'{"prompt": "a"}', **key)
        assert (status, json.loads(refused)["error"]["code"]) == (503, "queue_full")
        server.process.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()
    finally:
        status = server.stop()
    assert status == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_loud_refusals(smollm2: Path, server: Server, tmp_path: Path) -> None:
    """A port in use, a model that is not there and the like end the command with one line that says so."""
    for arguments, words in (
        ((str(smollm2), "--port", str(server.port)), "cannot be bound"),
        ((str(smollm2), "--host", ".."), "'..' is no address"),
        (("--models-dir", str(tmp_path)), f"no model to be served in {tmp_path}"),
        (("no-such-model",), "no-such-model"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "llcuda_ffi", "serve", *arguments], check=False, capture_output=True, text=True,
            timeout=60, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
