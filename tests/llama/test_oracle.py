"""The oracle of the text path: however a completion is asked for, it is the beginning of the whole, cold, lone one.

pytest --hypothesis-profile=long: many more examples.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from llcuda_ffi import AsyncLlama, Llama
from llcuda_ffi.engine.results import Chunk, Completion, TokenLogprob

from ..support.tiny_model import make_tiny_llama

pytest.importorskip("llguidance")

PROMPTS = ["the quick brown", "one two three", "é🙂", "a model reads <|im_end|> tokens"]
# what a random model writes is mostly no UTF-8; constrained, it writes characters of several bytes and tokens
CONSTRAINTS: list[dict[str, Any]] = [
    {},
    {"regex": "(🙂|é|ab|e\u0301| the|👩🏽‍🚀){3,12}"},
    {"choices": ["🙂🙂🙂🙂 one", "🙂🙂 two", "ab"]},
    {"json_schema": {"type": "object", "properties": {"é": {"enum": ["🙂 a", "b"]}}, "required": ["é"]}},
    {"json_schema": {"type": "integer"}},
]
WAYS = ["generate", "stream", "async", "async stream", "chat", "chat_stream", "async chat", "async chat_stream"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oracle") / "tiny.gguf"
    make_tiny_llama(path, seed=4)
    return path


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Llama]:
    with Llama(path, n_ctx=256, n_parallel=2, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def other(path: Path) -> Iterator[AsyncLlama]:
    llm = AsyncLlama(path, n_ctx=256, n_parallel=2, n_threads=1)
    yield llm
    llm.close()


@dataclass
class Got:
    """What came back: a completion, and the pieces it came in."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish: str
    parsed: Any
    chunks: list[tuple[str, list[int], list[TokenLogprob] | None]]


def _of(done: Completion, chunks: list[Chunk]) -> Got:
    pieces = [(c.text, c.token_ids, c.logprobs) for c in chunks]
    return Got(done.text, done.token_ids, done.logprobs, done.finish_reason, done.parsed, pieces)


def _of_chat(done: Any, chunks: list[Any]) -> Got:
    choice, pieces = done.choices[0], [(c.content, c.token_ids, c.logprobs) for c in chunks]
    ids = [i for _, tokens, _ in pieces for i in tokens]
    return Got(done.text, ids, choice.logprobs, done.finish_reason, done.parsed, pieces)


def ask(llm: Llama, other: AsyncLlama, way: str, prompt: str, params: dict[str, Any]) -> Got:
    """The completion, asked for in one of the ways."""
    messages = [{"role": "user", "content": prompt}]

    async def later() -> Got:
        if way == "async":
            return _of(await other.generate(prompt, **params), [])
        if way == "async stream":
            chunks = [c async for c in other.stream(prompt, **params)]
            assert chunks[-1].completion is not None
            return _of(chunks[-1].completion, chunks)
        if way == "async chat":
            return _of_chat(await other.chat(messages, **params), [])
        pieces = [c async for c in other.chat_stream(messages, **params)]
        return _of_chat(pieces[-1].completion, pieces)

    if way.startswith("async"):
        return asyncio.run(later())
    if way == "generate":
        return _of(llm.generate(prompt, **params), [])
    if way == "chat":
        return _of_chat(llm.chat(messages, **params), [])
    if way == "stream":
        chunks = list(llm.stream(prompt, **params))
        assert chunks[-1].completion is not None
        return _of(chunks[-1].completion, chunks)
    pieces = list(llm.chat_stream(messages, **params))
    return _of_chat(pieces[-1].completion, pieces)


def _shown(data: bytes) -> str:
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def expected(llm: Llama, whole: Completion, stops: list[str]) -> tuple[str, int, str]:
    """Text, number of tokens and finish reason of the whole completion where `stops` end it."""
    ids = whole.token_ids[:-1] if whole.finish_reason == "eog" else whole.token_ids
    for n in range(1, len(ids) + 1):
        text = _shown(b"".join(map(llm.vocab.piece, ids[:n])))
        for end in range(1, len(text) + 1):
            found = [stop for stop in stops if text[:end].endswith(stop)]
            if found:
                return text[: end - len(max(found, key=len))], n, "stop"
    return whole.text, len(whole.token_ids), whole.finish_reason


@settings(
    max_examples=max(250, settings().max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_every_way_gives_the_beginning_of_the_whole(llm: Llama, other: AsyncLlama, data: st.DataObject) -> None:
    """Whole or streamed, awaited or not, plain or as a chat, with any stop strings cut from it: text, tokens, log
    probabilities, finish reason and parsed value are those of the lone, cold completion up to its end; chunks add up to
    it, and none shows what is taken back."""
    prompt, way = data.draw(st.sampled_from(PROMPTS)), data.draw(st.sampled_from(WAYS))
    params: dict[str, Any] = {
        **data.draw(st.sampled_from(CONSTRAINTS)),
        "max_tokens": data.draw(st.integers(1, 24)),
        "logprobs": data.draw(st.sampled_from([None, 0, 2])),
        "temperature": data.draw(st.sampled_from([0.0, 1.0])),
        "seed": data.draw(st.integers(0, 3)),
    }
    chat = "chat" in way
    tokens = llm.chat([{"role": "user", "content": prompt}], max_tokens=1).prompt_tokens if chat else prompt
    whole = llm.generate(tokens, **params, prefix_cache=False)
    stops = []
    for _ in range(data.draw(st.integers(0, 2))):
        start = data.draw(st.integers(0, max(0, len(whole.text) - 1)))
        stops.append(whole.text[start : start + data.draw(st.integers(1, 6))])
    stops = [stop for stop in stops if stop]
    text, n, finish = expected(llm, whole, stops)
    event(f"{way}, {finish}")
    got = ask(llm, other, way, prompt, {**params, "stop": stops})
    assert got.text == text
    assert got.finish == ("stop" if chat and finish == "eog" else finish)
    if got.token_ids:
        assert got.token_ids == whole.token_ids[:n]
    if params["logprobs"] is None:
        assert got.logprobs is None
    else:
        assert whole.logprobs is not None
        assert [e.token for e in got.logprobs or ()] == whole.token_ids[:n]
        ours, theirs = ([e.logprob for e in entries] for entries in (got.logprobs or [], whole.logprobs[:n]))
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert got.parsed == (whole.parsed if finish != "stop" else None)
    if whole.finish_reason == "length" and params.get("json_schema") == {"type": "integer"} and text not in ("0", "-0"):
        assert got.parsed is None  # another digit could follow
    if got.chunks:
        assert "".join(piece for piece, _, _ in got.chunks) == text
        assert [i for _, ids, _ in got.chunks for i in ids] == whole.token_ids[:n]
        for _, ids, logprobs in got.chunks:
            if params["logprobs"] is not None and ids:
                assert [e.token for e in logprobs or ()] == ids
