"""AsyncLlama: the same results, awaited; cancellation frees the slot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda_ffi import AsyncLlama
from llcuda_ffi.errors import Cancelled, ClosedError, InvalidRequest

from ..support.tiny_model import make_tiny_llama

TEXTS = ["Once upon a time", "The capital of France is", "def fib(n):"]


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[AsyncLlama]:
    llm = AsyncLlama(smollm2, n_ctx=512, n_parallel=3)
    yield llm
    llm.close()
    llm.close()


async def _settled(llm: AsyncLlama) -> None:
    for _ in range(200):
        if llm.metrics().running == llm.metrics().queued == 0:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("requests are still running")


def test_many_tasks(llm: AsyncLlama) -> None:
    """Tasks at once get what their prompts give one after another; streams too."""

    async def stream(text: str) -> str:
        return "".join([c.text async for c in llm.stream(text, max_tokens=8, temperature=0)])

    async def main() -> None:
        alone = [(await llm.generate(t, max_tokens=8, temperature=0)).text for t in TEXTS]
        together = await asyncio.gather(*(llm.generate(t, max_tokens=8, temperature=0) for t in TEXTS * 4))
        assert [r.text for r in together] == alone * 4
        assert await asyncio.gather(*map(stream, TEXTS)) == alone
        listed = await llm.generate(TEXTS, max_tokens=8, temperature=0)
        assert [r.text for r in listed] == alone
        assert len(await llm.generate(TEXTS[0], max_tokens=2, n=3)) == 3

    asyncio.run(main())


def test_cancelled_task_frees_its_slot(llm: AsyncLlama) -> None:
    """Cancelling the task, and leaving a stream, end their requests."""

    async def main() -> None:
        before = llm.metrics().cancelled
        task = asyncio.create_task(llm.generate(TEXTS[0], max_tokens=450, ignore_eos=True))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = llm.stream(TEXTS[0], max_tokens=450, ignore_eos=True)
        async for _ in stream:
            break
        await stream.aclose()
        await _settled(llm)
        assert llm.metrics().cancelled == before + 2

    asyncio.run(main())


def test_event_loop_is_not_blocked(llm: AsyncLlama) -> None:
    """Other coroutines run while a prompt is computed."""

    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        await llm.generate("word " * 400, max_tokens=4)
        ticker.cancel()
        assert ticks > 3

    asyncio.run(main())


def test_bad_input_and_close(smollm2: Path) -> None:
    """Errors are those of Llama; after close every use raises ClosedError."""

    async def main() -> None:
        async with AsyncLlama(smollm2, n_ctx=256, n_parallel=1) as llm:
            with pytest.raises(InvalidRequest):
                await llm.generate("")
            with pytest.raises(InvalidRequest):
                await llm.generate("x", temperature=-1)
        with pytest.raises(ClosedError):
            await llm.generate("x")

    asyncio.run(main())


def test_200_requests_with_cancellations(llm: AsyncLlama) -> None:
    """200 short requests, a tenth of them cancelled at random: all accounted for, none mixed up, nothing left."""
    import random

    async def main() -> None:
        want = {t: (await llm.generate(t, max_tokens=3, temperature=0)).token_ids for t in TEXTS}
        rng = random.Random(1)
        before = llm.metrics()
        gate = asyncio.Semaphore(32)
        done = cancelled = 0

        async def one(i: int) -> None:
            nonlocal done, cancelled
            text = TEXTS[i % len(TEXTS)]
            async with gate:
                task = asyncio.create_task(llm.generate(text, max_tokens=3, temperature=0))
                if rng.random() < 0.1:
                    await asyncio.sleep(rng.random() * 0.02)
                    task.cancel()
                try:
                    result = await task
                except asyncio.CancelledError:
                    cancelled += 1
                else:
                    assert result.token_ids == want[text]
                    done += 1

        await asyncio.gather(*(one(i) for i in range(200)))
        await _settled(llm)
        after = llm.metrics()
        assert done + cancelled == 200
        assert after.requests - before.requests >= done
        assert after.failed == before.failed

    asyncio.run(main())


def test_aclose(tmp_path: Path) -> None:
    """It ends what runs, may come twice, and is what contextlib.aclosing calls."""
    make_tiny_llama(tmp_path / "tiny.gguf")

    async def main() -> None:
        async with contextlib.aclosing(AsyncLlama(tmp_path / "tiny.gguf", n_ctx=512)) as llm:
            long = llm.generate(TEXTS[0], max_tokens=1_000_000, overflow="shift", ignore_eos=True)
            task = asyncio.create_task(long)
            await asyncio.sleep(0.01)
            await llm.aclose()
            with pytest.raises((Cancelled, ClosedError)):
                await task
        with pytest.raises(ClosedError):
            await llm.generate(TEXTS[0])

    asyncio.run(main())
