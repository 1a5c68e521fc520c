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
    serve.run(application(str(model), replicas=2, parallel=4, num_cpus=0.5, name="tiny", settings={"n_ctx": 512}))
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
        before, cached = 0, []
        for turn in range(3):
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
            fields = {"input": f"{turn} and again", "previous_response_id": response["id"]}
        assert min(cached) > 0.6, cached
        with urllib.request.urlopen(f"{address}/v1/responses/{response['id']}/input_items", timeout=60) as answer:
            assert len(json.loads(answer.read())["data"]) == 5
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


def test_a_killed_replica_loses_nothing(address: str) -> None:
    """Of 24 streams and whole answers under way, each is answered to its end when a replica is killed."""
    import ray
    from ray.util import list_named_actors

    begun = threading.Barrier(25)

    def ask(i: int) -> tuple[int, bytes]:
        begun.wait()
        prompt = f"{i} {LONG}"
        return _post(f"{address}/v1/completions", prompt=prompt, max_tokens=300, ignore_eos=True, stream=i % 2 == 0)

    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(ask, i) for i in range(24)]
        begun.wait()
        named = [a for a in list_named_actors(all_namespaces=True) if "Replica#" in a["name"]]
        assert len(named) == 2
        ray.kill(ray.get_actor(named[0]["name"], named[0]["namespace"]), no_restart=False)
        for i, answer in enumerate(answers):
            status, body = answer.result()
            assert status == 200, body
            if i % 2:
                assert json.loads(body)["usage"]["completion_tokens"] == 300
            else:
                assert body.endswith(b"data: [DONE]\n\n"), body[-300:]
                assert b'"error"' not in body
                events = [json.loads(line[6:]) for line in body.split(b"\n\n") if line.startswith(b"data: {")]
                assert events[-1]["choices"][0]["finish_reason"] == "length"
                assert events[-1]["timings"]["predicted_n"] == 300
