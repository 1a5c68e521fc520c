"""AsyncLlama leaves the event loop to others: while it loads, tokenizes, makes requests, submits and collects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from llcuda_ffi import AsyncLlama, Model
from llcuda_ffi.errors import ClosedError, ContextOverflow, ModelNotFound
from tests.support.tiny_model import make_tiny_llama

SHARE = 0.25  # of the time of the whole call; what blocks the loop takes nearly all of it


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    make_tiny_llama(path)
    with Model.load(path) as model:
        yield model


async def largest_gap(work: Coroutine[Any, Any, Any]) -> tuple[float, Any]:
    """The longest time in which no other coroutine ran, as a share of the time that `work` took; and its outcome."""
    gap, last = 0.0, perf_counter()

    async def tick() -> None:
        nonlocal gap, last
        while True:
            await asyncio.sleep(0.001)
            gap, last = max(gap, perf_counter() - last), perf_counter()

    ticker = asyncio.create_task(tick())
    began = last = perf_counter()
    outcome = (await asyncio.gather(work, return_exceptions=True))[0]
    took = perf_counter() - began
    await asyncio.sleep(0.01)
    ticker.cancel()
    return gap / took, outcome


def test_a_prompt_of_3_mb(tiny: Model) -> None:
    """It is tokenized, and then refused as too long, off the loop."""

    async def main() -> None:
        async with AsyncLlama(tiny, n_ctx=64, n_parallel=1) as llm:
            share, outcome = await largest_gap(llm.generate("one two three " * 220_000))
        assert isinstance(outcome, ContextOverflow)
        assert share < SHARE

    asyncio.run(main())


@pytest.mark.parametrize("count", [2000, pytest.param(16_000, marks=pytest.mark.soak)])
def test_thousands_of_prompts(tiny: Model, count: int) -> None:
    """They are made, submitted, awaited and collected in parts of the time."""

    async def main() -> None:
        async with AsyncLlama(tiny, n_ctx=64, n_parallel=32) as llm:
            prompts = [f"{i}" for i in range(count)]
            share, found = await largest_gap(llm.generate(prompts, max_tokens=1, temperature=0))
            again = await llm.generate(prompts[1234], max_tokens=1, temperature=0)
        assert len(found) == count
        assert found[1234].token_ids == again.token_ids
        assert share < SHARE

    asyncio.run(main())


def test_load(smollm2: Path) -> None:
    """`load`, `async with` and a first call load off the loop; what cannot be loaded says so there."""

    async def main() -> None:
        share, llm = await largest_gap(AsyncLlama.load(smollm2, n_ctx=64, n_parallel=1))
        assert share < SHARE
        assert (await llm.generate("x", max_tokens=1)).token_ids
        await asyncio.to_thread(llm.close)
        with pytest.raises(ClosedError):
            await llm.generate("x")
        with pytest.raises(ModelNotFound):
            await AsyncLlama.load("no-such-model.gguf")
        lazy = AsyncLlama(smollm2, n_ctx=64, n_parallel=1)
        share, done = await largest_gap(lazy.generate("x", max_tokens=1))
        assert done.token_ids
        assert share < SHARE
        await asyncio.to_thread(lazy.close)
        never = AsyncLlama(smollm2)
        never.close()
        with pytest.raises(ClosedError):
            async with never:
                pass

    asyncio.run(main())


def test_outside_of_a_loop_it_loads_at_once() -> None:
    """Where no loop runs, what is wrong with the model is said by the constructor."""
    with pytest.raises(ModelNotFound):
        AsyncLlama("no-such-model.gguf")
