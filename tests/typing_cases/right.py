"""User code that type checkers accept, and what they know about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import assert_type

from llcuda_ffi import AsyncLlama, ChatChunk, ChatCompletion, Chunk, Completion, Embedder, Llama, SamplingParams


@dataclass
class City:
    """A structured answer."""

    name: str
    people: int


def plain(llm: Llama, embedder: Embedder) -> None:
    """One prompt gives one result, several give a list."""
    assert_type(llm.generate("x"), Completion[Any])
    assert_type(llm.generate([1, 2, 3]), Completion[Any])
    assert_type(llm.generate(["x", "y"]), list[Completion[Any]])
    assert_type(llm.generate("x", n=2, max_tokens=4), list[Completion[Any]])
    assert_type(llm.generate("x", n=1), Completion[Any])
    assert_type(llm.generate(["x"], n=2), list[list[Completion[Any]]])
    assert_type(llm.generate("x", SamplingParams(seed=1), temperature=0.5, stop=["\n"]), Completion[Any])
    assert_type(llm.generate("x", {"max_tokens": 3}), Completion[Any])
    assert_type(llm.generate("x", json_schema=City), Completion[City | None])
    assert_type(llm.generate("x", json_schema={"type": "object"}), Completion[Any])
    assert_type(llm.stream("x", n=2), Iterator[Chunk])
    assert_type(llm.infill("a", "b", max_tokens=3), Completion[Any])
    message = {"role": "user", "content": "Hi"}
    assert_type(llm.chat([message], temperature=0), ChatCompletion[Any])
    assert_type(llm.chat([[message], [message]]), list[ChatCompletion[Any]])
    assert_type(llm.chat([message], json_schema=City), ChatCompletion[City | None])
    assert_type(llm.chat_stream([message], tools=[], n=1), Iterator[ChatChunk])
    assert_type(embedder.encode("x", prompt_name="query", normalize=True).shape, tuple[Any, ...])
    embedder.encode((t for t in ("a", "b")), precision="int8", dtype=np.float32)


async def awaited(llm: AsyncLlama) -> None:
    """The same, awaited."""
    assert_type(await llm.generate("x"), Completion[Any])
    assert_type(await llm.generate(["x", "y"]), list[Completion[Any]])
    assert_type(await llm.generate("x", n=2), list[Completion[Any]])
    assert_type(await llm.chat([{"role": "user", "content": "Hi"}]), ChatCompletion[Any])
    assert_type(await llm.chat([{"role": "user", "content": "Hi"}], json_schema=City), ChatCompletion[City | None])
    assert_type(llm.chat_stream([{"role": "user", "content": "Hi"}]), AsyncIterator[ChatChunk])
