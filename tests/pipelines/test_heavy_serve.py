"""Ray Serve: two replicas of a tiny model on this machine."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ..support.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]
LONG = "the quick brown fox jumps over the lazy dog and then the dog sleeps in the sun "


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application at Ray's HTTP address."""
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    from llcuda_ffi.pipelines.serve import application

    model = tmp_path_factory.mktemp("ray") / "tiny.gguf"
    make_tiny_llama(model)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": 18321})
    serve.run(application(str(model), replicas=2, parallel=16, num_cpus=0.5, name="tiny", settings={"n_ctx": 1024}))
    yield "http://127.0.0.1:18321"
    serve.shutdown()
    ray.shutdown()


def _post(url: str, **fields: Any) -> tuple[int, bytes]:
    request = urllib.request.Request(url, json.dumps(fields).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_whole_api(address: str) -> None:
    """Chats, streams, Anthropic's messages, errors: as from one server."""
    hello = [{"role": "user", "content": "the fox"}]
    status, body = _post(f"{address}/v1/chat/completions", messages=hello, max_tokens=4)
    assert status == 200
    assert json.loads(body)["usage"]["completion_tokens"] == 4
    status, body = _post(f"{address}/v1/chat/completions", messages=hello, max_tokens=4, stream=True)
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")
    assert _post(f"{address}/v1/messages", messages=hello, max_tokens=4)[0] == 200
    status, body = _post(f"{address}/v1/completions", prompt="a", temprature=1)
    assert (status, b"did you mean temperature" in body) == (400, True)
    assert _post(f"{address}/v1/responses/input_tokens", input="a")[0] == 200
    with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as answer:
        assert json.loads(answer.read())["data"][0]["id"] == "tiny"


def test_responses_go_on_on_any_replica(address: str) -> None:
    """Conversations by previous_response_id, streamed or not: whichever replica answers knows the earlier turns,
    and the one that has them in its cache is asked; what was deleted is gone for all."""
    for session in range(4):
        fields: dict[str, Any] = {"input": f"{session} {LONG * 5}"}
        before, cached, items = 0, [], 0
        for turn in range(3):
            items += 1  # the message
            stream = turn != 1
            status, body = _post(f"{address}/v1/responses", max_output_tokens=4, stream=stream, **fields)
            assert status == 200, body
            last = body.split(b"data: ")[-1] if stream else body
            response = json.loads(last)["response"] if stream else json.loads(last)
            assert response["store"] is True
            used = response["usage"]
            if turn:
                cached.append(used["input_tokens_details"]["cached_tokens"] / before)
            before = used["input_tokens"]
            items += len(response["output"]) if turn < 2 else 0  # none where the answer ended at once
            fields = {"input": f"{turn} and again", "previous_response_id": response["id"]}
        assert min(cached) > 0.6, cached
        with urllib.request.urlopen(f"{address}/v1/responses/{response['id']}/input_items", timeout=60) as answer:
            assert len(json.loads(answer.read())["data"]) == items >= 3
    gone = urllib.request.Request(f"{address}/v1/responses/{response['id']}", method="DELETE")
    with urllib.request.urlopen(gone, timeout=60) as answer:
        assert json.loads(answer.read())["deleted"]
    for _ in range(3):
        assert _post(f"{address}/v1/responses", **fields)[0] == 404


def test_sessions_find_their_cache(address: str) -> None:
    """Each of six conversations goes on where its last turn is cached, as it would on one replica."""
    found = []
    for session in range(6):
        messages: list[dict[str, str]] = []
        before = 0
        for turn in range(3):
            text = f"{session} {LONG * 5}" if not turn else f"{turn} and again"
            messages.append({"role": "user", "content": text})
            body = json.loads(_post(f"{address}/v1/chat/completions", messages=messages, max_tokens=4)[1])
            usage = body["usage"]
            if turn:
                found.append(usage["prompt_tokens_details"]["cached_tokens"] / before)
            before = usage["prompt_tokens"]
            messages.append({"role": "assistant", "content": body["choices"][0]["message"]["content"] or ""})
    # up to 64 tokens of what is cached are computed again where that is faster
    assert min(found) > 0.6, found


SCHEMA = {
    "type": "object",
    "properties": {
        "words": {"type": "array", "items": {"enum": ["fox", "dog", "sun"]}, "minItems": 40, "maxItems": 50}
    },
    "required": ["words"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": LONG}]
STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"temperature": 0, "max_tokens": 800, "ignore_eos": True}),
    ("/v1/completions", {"temperature": 1.0, "seed": 5, "n": 2, "logprobs": 1, "max_tokens": 700, "ignore_eos": True}),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 800, "ignore_eos": True, "repeat_penalty": 1.2}),
    ("/v1/chat/completions", {"messages": HELLO, "seed": 1, "json_schema": SCHEMA, "max_tokens": 900}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 800, "ignore_eos": True, "temperature": 1.0}),
    ("/v1/responses", {"input": LONG, "max_output_tokens": 800, "ignore_eos": True, "temperature": 0}),
]


def test_a_killed_replica_loses_nothing(address: str) -> None:
    """Of 24 streams, all of them begun, and 12 whole answers each is answered to its end when a replica is killed:
    greedy and drawn, with a seed and without, in the words of every API; nothing is sent twice, no id changes."""
    import ray
    from ray.util import list_named_actors

    begun, killed = threading.Barrier(25), threading.Event()

    def whole(i: int) -> tuple[int, bytes]:
        return _post(f"{address}/v1/completions", prompt=f"{i} {LONG}", max_tokens=200, ignore_eos=True)

    def stream(i: int) -> tuple[str, bytes, bytes]:
        path, fields = STREAMS[i % len(STREAMS)]
        prompt = {"prompt": f"{i} {LONG}"} if path == "/v1/completions" else {}
        body = json.dumps({**fields, **prompt, "stream": True, **_with_usage(path)}).encode()
        request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            before = answer.read(2000)
            begun.wait(60)
            killed.wait(60)
            return path, before, answer.read()

    with ThreadPoolExecutor(36) as pool:
        streams = [pool.submit(stream, i) for i in range(24)]
        begun.wait(60)
        answers = [pool.submit(whole, i) for i in range(12)]
        named = [a for a in list_named_actors(all_namespaces=True) if "Replica#" in a["name"]]
        assert len(named) == 2
        ray.kill(ray.get_actor(named[0]["name"], named[0]["namespace"]), no_restart=False)
        killed.set()
        for one in streams:
            path, before, after = one.result()
            check_stream(path, before + after)
        for answer in answers:
            status, body = answer.result()
            assert status == 200, body
            assert json.loads(body)["usage"]["completion_tokens"] == 200


def _with_usage(path: str) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if "completions" in path else {}


def check_stream(path: str, body: bytes) -> None:
    """It is whole and well-formed: one id, every part once, the usage of the whole."""
    assert b'"error":{' not in body, body[-500:]
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    if path == "/v1/messages":
        kinds = [event["type"] for event in events if event["type"] not in ("ping", "content_block_delta")]
        assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
        assert events[-2]["usage"]["output_tokens"] == 800
    elif path == "/v1/responses":
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        done = events[-1]["response"]
        assert done["id"] == events[0]["response"]["id"]
        assert {event["item_id"] for event in events if "item_id" in event} == {done["output"][0]["id"]}
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        assert text == done["output"][0]["content"][0]["text"]
        assert done["usage"]["output_tokens"] == 800
    else:
        assert body.endswith(b"data: [DONE]\n\n")
        assert len({(event["id"], event["created"]) for event in events}) == 1
        choices = [event["choices"][0] for event in events[:-1]]
        n = len({choice["index"] for choice in choices})
        ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        used = events[-1]["usage"]["completion_tokens"]
        text = "".join(choice.get("delta", {}).get("content") or "" for choice in choices)
        if ends == ["stop"]:
            assert json.loads(text)["words"]
        else:
            assert ends == ["length"] * n
            assert used == (1400 if n == 2 else 800)
        if n == 2:
            made = sum(len(choice["logprobs"]["tokens"]) for choice in choices if choice["logprobs"])
            assert made == used
