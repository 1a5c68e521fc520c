"""A streamed answer that one replica began and another one goes on with: together it is the answer of one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi.chat.identity import Identity
from llcuda_ffi.errors import BackendFailure
from llcuda_ffi.pipelines.serve.replica import Asking, Replica
from llcuda_ffi.pipelines.serve.wire import Head, Inbox

from ..support.tiny_model import make_tiny_llama

TEMPLATE = (
    "{% for tool in tools or [] %}<tools>{{ tool | tojson }}</tools>\n<tool_call>\n{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if opened %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
HELLO = [{"role": "user", "content": "the fox"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "day": {"enum": ["today", "tomorrow"]}},
    "required": ["city", "day"],
    "additionalProperties": False,
}
TOOL = {"name": "weather", "parameters": PARAMETERS}
LIKE = {"temperature": 1.0, "seed": 3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", {"prompt": "the", "max_tokens": 12, "ignore_eos": True, **LIKE}),
    "two prompts, two answers, log probabilities": (
        "/v1/completions",
        {"prompt": ["the", "a"], "n": 2, "logprobs": 1, "max_tokens": 6,
         "stream_options": {"include_usage": True}, **LIKE},
    ),
    "stop string, echo": (
        "/v1/completions",
        {"prompt": "the", "max_tokens": 60, "stop": ["th"], "echo": True, "temperature": 0, "repeat_penalty": 1.3},
    ),
    "chat": (
        "/v1/chat/completions",
        {"messages": HELLO, "n": 2, "max_tokens": 8, "stream_options": {"include_usage": True}, **LIKE},
    ),
    "chat, token ids, log probabilities": (
        "/v1/chat/completions",
        {"messages": HELLO, "max_tokens": 8, "return_token_ids": True, "logprobs": True, "top_logprobs": 1, **LIKE},
    ),
    "calls": (
        "/v1/chat/completions",
        {"messages": HELLO, "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required",
 "parallel_tool_calls": False, **LIKE},
    ),
    "structured": (
        "/v1/chat/completions",
        {
            "messages": HELLO,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}},
            **LIKE,
        },
    ),
    "reasoning": (
        "/v1/chat/completions",
        {
            "messages": HELLO, "chat_template_kwargs": {"opened": True}, "max_reasoning_tokens": 4, "max_tokens": 24,
            "ignore_eos": True, **LIKE,
        },
    ),
    "messages": ("/v1/messages", {"messages": HELLO, "max_tokens": 10, **LIKE}),
    "messages, use of a tool": (
        "/v1/messages",
        {
            "messages": HELLO, "max_tokens": 200, "tools": [{"name": "weather", "input_schema": PARAMETERS}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, **LIKE,
        },
    ),
    "response": ("/v1/responses", {"input": "the fox", "max_output_tokens": 10, "store": False,
 "top_logprobs": 1, **LIKE}),
    "response, call": (
        "/v1/responses",
        {
            "input": "the fox", "store": False, "tools": [{"type": "function", **TOOL}], "tool_choice": "required",
            "parallel_tool_calls": False, **LIKE,
        },
    ),
    "llama.cpp's": ("/completion", {"prompt": "the", "n_predict": 10, "n_probs": 1, "return_tokens": True, **LIKE}),
}  # fmt: skip

# times, and what was in whose cache
_OWN = {
    "timings", "cached_tokens", "cache_read_input_tokens", "input_tokens", "tokens_cached", "completed_at",
}  # fmt: skip


class Cluster:
    """Two replicas of a model, and the event loop that they answer in."""

    def __init__(self, path: Path) -> None:
        settings = {"n_ctx": 512, "n_parallel": 4, "n_threads": 1, "device": "cpu"}
        self.replicas = [Replica(str(path), "tiny", settings, {}, None) for _ in range(2)]
        self.isolated = Replica(str(path), "tiny", {**settings, "isolate": True}, {}, None)
        self._inbox, self._loop = Inbox(), asyncio.new_event_loop()

    def answer(self, asked: Asking, which: int) -> tuple[list[Any], list[bytes]]:
        """The pieces of an answer, and what was noted of each of its body."""
        return self._loop.run_until_complete(self._answer(asked, which))

    async def _answer(self, asked: Asking, which: int) -> tuple[list[Any], list[bytes]]:
        arriving = await self._inbox.expect("127.0.0.1")
        await self.replicas[which].answer(asked, [], arriving.reply)
        parts: list[Any] = []
        while found := await arriving.take(0):
            parts += found
        self._inbox.forget(arriving)
        return parts, arriving.notes

    def killed(self, asked: Asking) -> tuple[list[Any], list[bytes]]:
        """The pieces and notes of an answer whose engine is killed after some."""

        async def run() -> tuple[list[Any], list[bytes]]:
            arriving = await self._inbox.expect("127.0.0.1")
            answering = asyncio.ensure_future(self.isolated.answer(asked, [], arriving.reply))
            parts: list[Any] = []
            while len(parts) < 5:
                parts += await arriving.take(0)
            os.kill(engine_process(), signal.SIGKILL)
            with pytest.raises(BackendFailure):
                await answering
            arriving.fail(ConnectionResetError())
            with pytest.raises(ConnectionResetError):
                while True:
                    parts += await arriving.take(0)
            return parts[1:], arriving.notes

        return self._loop.run_until_complete(run())

    def close(self) -> None:
        self._inbox.close()
        for replica in (*self.replicas, self.isolated):
            self._loop.run_until_complete(replica.close())
        self._loop.run_until_complete(asyncio.sleep(0.05))  # the inbox sees their ends
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of a tiny model that thinks and calls."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    make_tiny_llama(path, {"tokenizer.chat_template": TEMPLATE})
    made = Cluster(path)
    yield made
    made.close()


def engine_process() -> int:
    """The child of this process that has an engine."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and b"isolated_process" in (place / "cmdline").read_bytes():
                return int(place.name)
        except OSError:  # it has ended meanwhile
            continue
    raise AssertionError("there is none")


def asking(path: str, fields: dict[str, Any]) -> Asking:
    body = json.dumps({**fields, "stream": True}).encode()
    return Asking("POST", path, b"", [(b"content-type", b"application/json")], body, Identity("0" * 32, 1))


def bare(value: Any) -> Any:
    """Without what is another replica's own; what a batch computes differs in the last digits."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if key not in _OWN}
    if isinstance(value, list):
        return [bare(item) for item in value]
    return round(value, 2) if isinstance(value, float) else value


def events(pieces: list[bytes]) -> dict[Any, list[Any]]:
    """The events of each choice, in order: how several come one between the other is nobody's promise."""
    found: dict[Any, list[Any]] = {}
    for line in b"".join(pieces).split(b"\n"):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            choices = event.get("choices")
            found.setdefault(choices[0]["index"] if choices else None, []).append(bare(event))
    return found


def both(first: dict[Any, list[Any]], rest: dict[Any, list[Any]]) -> dict[Any, list[Any]]:
    return {key: [*first.get(key, ()), *rest.get(key, ())] for key in first.keys() | rest.keys()}


@pytest.mark.parametrize("case", CASES)
def test_another_one_goes_on(cluster: Cluster, case: str) -> None:
    """From each place of the stream: the pieces, ids and ends that would have followed, none twice."""
    asked = asking(*CASES[case])
    (head, *pieces), notes = cluster.answer(asked, 0)
    assert isinstance(head, Head)
    assert head.status == 200, pieces
    assert b'"error":{' not in b"".join(pieces), pieces[-1]
    assert len(notes) == len(pieces) > 5
    whole = events(pieces)
    for at in range(1, len(pieces), 1 + len(pieces) // 6):
        begun = dataclasses.replace(asked, notes=notes[:at])
        rest, later = cluster.answer(begun, at % 2)
        assert both(events(pieces[:at]), events(rest)) == whole, at
        assert len(later) == len(rest)


def test_an_engine_that_dies_is_no_answer(cluster: Cluster, tmp_path: Path) -> None:
    """A replica whose engine's process dies sends no error to the client: the next one goes on where it was.

    Greedy: of hundreds of draws one falls where the last digits of what another batch computes decide.
    """
    path, fields = CASES["messages"]
    asked = asking(path, {**fields, "max_tokens": 400, "ignore_eos": True, "temperature": 0})
    (_, *pieces), _ = cluster.answer(asked, 0)
    begun, notes = cluster.killed(asked)
    assert 0 < len(notes) < len(pieces)
    rest, _ = cluster.answer(dataclasses.replace(asked, notes=notes), 1)
    assert both(events(begun), events(rest)) == events(pieces)
