"""Streams that go on after the chunks of an earlier one: the same tokens, text and ends, from every place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi import Llama
from llcuda_ffi.engine.results import Chunk, Completion
from llcuda_ffi.errors import InvalidRequest

PROMPT = "the quick brown fox jumps over"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["brown fox", "lazy dog"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "penalties": {"temperature": 0, "repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "seeded": {"temperature": 1.0, "seed": 7, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "seeded, xtc, penalties": {
        "temperature": 1.3, "seed": 3, "xtc_probability": 0.5, "xtc_threshold": 0.002, "repeat_penalty": 1.2,
        "top_k": 50, "min_p": 0.0,
    },
    "logprobs": {"temperature": 1.0, "seed": 5, "logprobs": 2},
    "schema": {"temperature": 1.0, "seed": 1, "json_schema": SCHEMA, "max_tokens": 60},
    "schema, logprobs": {"temperature": 1.0, "seed": 2, "json_schema": SCHEMA, "logprobs": 0, "max_tokens": 60},
    "grammar": {"temperature": 1.0, "seed": 4, "grammar": 'root ::= ("a" | "b" | "the ")+ "."', "max_tokens": 30},
    "steps": {"temperature": 1.0, "seed": 9, "min_tokens": 12, "bad_words": ["the"]},
    "echo": {"temperature": 0, "echo": True},
    "n": {"temperature": 1.0, "seed": 11, "n": 3},
    "stop": {"temperature": 1.0, "seed": 6, "stop": ["th", "e q"], "max_tokens": 60},
}  # fmt: skip


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[Llama]:
    """Computes in F32 alone: what a batch holds does not change the numbers."""
    with Llama(tiny_llama, n_ctx=256, n_parallel=4, n_threads=1, device="cpu") as llm:
        yield llm


def bare(done: Completion) -> Completion:
    """Without what hangs on time and cache."""
    usage = dataclasses.replace(done.usage, cached_tokens=0)
    return dataclasses.replace(done, timings=None, usage=usage, seed=None, logprobs=None)  # type: ignore[arg-type]


def copies(chunks: list[Chunk]) -> list[Chunk]:
    return [dataclasses.replace(chunk) for chunk in chunks]


def joined(chunks: list[Chunk], index: int) -> tuple[str, list[int], int]:
    own = [chunk for chunk in chunks if chunk.index == index]
    return (
        "".join(chunk.text for chunk in own),
        [token for chunk in own for token in chunk.token_ids],
        sum(len(chunk.logprobs or ()) for chunk in own),
    )


@pytest.mark.parametrize("case", CASES)
def test_goes_on_from_every_place(llm: Llama, case: str) -> None:
    """What follows the first chunks of a stream is what followed them before."""
    settings = {"max_tokens": 24, "ignore_eos": "schema" not in case and case != "grammar", **CASES[case]}
    first = list(llm.stream(PROMPT, **settings))
    n = settings.get("n", 1)
    whole = {chunk.index: chunk.completion for chunk in first if chunk.completion is not None}
    assert len(whole) == n
    for at in range(0, len(first) + 1, 1 if n == 1 else 4):
        begun = first[:at]
        rest = list(llm.stream(PROMPT, **settings, begun=copies(begun)))
        for i in range(n):
            assert joined([*begun, *rest], i) == joined(first, i), (case, at)
            done = next((chunk.completion for chunk in rest if chunk.completion and chunk.index == i), None)
            before = whole[i]
            assert before is not None
            if done is None:
                assert any(chunk.completion for chunk in begun if chunk.index == i)
                continue
            assert bare(done) == bare(before), (case, at)
            assert done.usage.cached_tokens <= done.usage.prompt_tokens
            if before.logprobs is not None:
                assert done.logprobs is not None
                assert [entry.token for entry in done.logprobs] == [entry.token for entry in before.logprobs]
                assert [e.logprob for e in done.logprobs] == pytest.approx(
                    [e.logprob for e in before.logprobs], abs=1e-3
                )


def test_the_end_may_be_all_that_is_missing(llm: Llama) -> None:
    """All tokens are there, their end is not: it comes, and nothing is computed."""
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 5, "ignore_eos": True}
    first = list(llm.stream(PROMPT, **settings))
    text, tokens, _ = joined(first, 0)
    batches = llm.metrics().batches
    [last] = llm.stream(PROMPT, **settings, begun=[Chunk(text, tokens)])
    assert (last.text, last.token_ids, last.finish_reason) == ("", [], "length")
    assert last.completion is not None
    assert last.completion.text == text
    assert llm.metrics().batches == batches


def test_a_shifted_one_goes_on(llm: Llama) -> None:
    """What no longer fits the context is dropped again; the count is of the whole."""
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 300, "ignore_eos": True, "overflow": "shift"}
    first = list(llm.stream(PROMPT, **settings))
    for at in (200, 290):
        rest = list(llm.stream(PROMPT, **settings, begun=copies(first[:at])))
        done = rest[-1].completion
        assert done is not None
        text, tokens, _ = joined([*first[:at], *rest], 0)
        assert (text, tokens, len(tokens)) == (done.text, done.token_ids, done.usage.completion_tokens)
        assert done.usage.completion_tokens == 300


@pytest.mark.parametrize(
    "begun",
    [
        [Chunk("another text", [5])],
        [Chunk("", [10**6])],
        [Chunk("", [1], index=1)],
        ["the"],
        "the",
        5,
    ],
)
def test_chunks_of_something_else_are_refused(llm: Llama, begun: Any) -> None:
    """Nothing is computed for a beginning that the request cannot have had."""
    with pytest.raises(InvalidRequest):
        list(llm.stream(PROMPT, max_tokens=8, begun=begun))


def test_a_structure_that_was_another_one_is_refused(llm: Llama) -> None:
    """The chunks must follow the grammar."""
    first = list(llm.stream(PROMPT, max_tokens=8, temperature=0))
    with pytest.raises(InvalidRequest):
        list(llm.stream(PROMPT, max_tokens=8, json_schema=SCHEMA, begun=first[:3]))
