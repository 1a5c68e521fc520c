"""Ragged load in one process: workers that ask again at once, and requests that come at random.

    python bench/load.py -m MODEL [--device cuda] [--slots 64] [--json FILE]

Prompts of 20 to 300 random tokens, answers of 20 to 200, sampled. Printed: tokens a second with and without the
prompts', the time to the first token, and the gaps between a stream's chunks.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any

import report

from llcuda_ffi import AsyncLlama

SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 1}
Request = tuple[list[int], int]  # a prompt, tokens of the answer


class Load:
    """Requests that run, and when their tokens came."""

    def __init__(self, llm: AsyncLlama) -> None:
        self._llm = llm
        self.made, self.first, self.gaps = 0, list[float](), list[float]()

    async def one(self, request: Request) -> None:
        """One stream to its end."""
        prompt, n = request
        began = last = perf_counter()
        count = 0
        async for chunk in self._llm.stream(prompt, max_tokens=n, ignore_eos=True, **SAMPLED):
            now = perf_counter()
            (self.gaps if count else self.first).append(now - (last if count else began))
            last, count = now, count + len(chunk.token_ids)
        self.made += count

    async def in_turn(self, requests: list[Request], workers: int) -> None:
        """Each worker asks again as soon as it has its answer."""
        todo = iter(requests)

        async def worker() -> None:
            for request in todo:
                await self.one(request)

        await asyncio.gather(*(worker() for _ in range(workers)))

    async def at_random(self, requests: list[Request], a_second: float) -> None:
        """Poisson arrivals."""
        r, tasks = random.Random(2), []
        for request in requests:
            tasks.append(asyncio.create_task(self.one(request)))
            await asyncio.sleep(r.expovariate(a_second))
        await asyncio.gather(*tasks)


def drawn(count: int, n_vocab: int) -> list[Request]:
    """Requests of all lengths."""
    r = random.Random(1)
    ids = min(n_vocab, 50_000)
    return [([r.randrange(300, ids) for _ in range(r.randrange(20, 300))], r.randrange(20, 200)) for _ in range(count)]


async def main() -> None:
    p = report.parser(__doc__, rounds=1)
    p.add_argument("--device", default="auto")
    p.add_argument("--slots", type=int, default=64)
    p.add_argument("--requests", type=int, default=256)
    a = p.parse_args()
    settings = {"n_ctx": 512, "n_parallel": a.slots, "device": a.device}
    async with await AsyncLlama.load(a.model, **settings) as llm:
        out = report.header("load", llm.llama.model.library, settings)
        requests = drawn(a.requests, len(llm.llama.vocab))
        few = requests[: a.requests // 4]
        await Load(llm).in_turn(few, a.slots)
        sides: dict[str, tuple[list[Request], Callable[[Load, list[Request]], Coroutine[Any, Any, None]]]] = {
            f"{a.slots} workers": (requests, lambda load, r: load.in_turn(r, a.slots)),
            f"{a.slots // 8} workers": (few, lambda load, r: load.in_turn(r, a.slots // 8)),
            "12 requests a second": (few, lambda load, r: load.at_random(r, 12)),
            "40 requests a second": (requests, lambda load, r: load.at_random(r, 40)),
        }
        out["load"] = {name: await measured(Load(llm), asked, run) for name, (asked, run) in sides.items()}
    for name, found in out["load"].items():
        print(f"  {name:<24} " + ", ".join(f"{key} {value:,.1f}" for key, value in found.items()))
    report.write(out, a.json)


async def measured(
    load: Load, requests: list[Request], run: Callable[[Load, list[Request]], Coroutine[Any, Any, None]]
) -> dict[str, float]:
    """One kind of load."""
    began = perf_counter()
    await run(load, requests)
    took = perf_counter() - began
    first = sorted(load.first)
    return {
        "tokens_per_s": load.made / took,
        "with_prompts_per_s": (load.made + sum(len(prompt) for prompt, _ in requests)) / took,
        "ttft_p50_ms": statistics.median(first) * 1e3,
        "ttft_p99_ms": first[int(0.99 * len(first))] * 1e3,
        "gap_p50_ms": statistics.median(load.gaps) * 1e3,
    }


if __name__ == "__main__":
    asyncio.run(main())
