"""What isolate=True costs: tokens a second of 32 streams, their CPU time, and the time to the first token of one.

    python -m bench.isolate --model smollm2-135m --rounds 5 --tokens 48

Both are loaded in one run and measured in turns; the medians are printed, and the difference. The CPU time is of both
processes: on a machine that others use too it says more than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from llcuda_ffi import AsyncLlama

STREAMS = 32


def cpu_seconds(llm: AsyncLlama) -> float:
    """CPU time of this process, and of the engine's where it has one."""
    pid = getattr(llm.llama.engine, "pid", None)
    own = time.process_time()
    if pid is None:
        return own
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return own + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def streams(llm: AsyncLlama, tokens: int) -> tuple[float, float]:
    """Tokens a second of 32 streams, and CPU milliseconds for each token."""

    async def one(number: int) -> int:
        count = 0
        prompt = f"Story number {number}:"
        async for chunk in llm.stream(prompt, max_tokens=tokens, ignore_eos=True, seed=number, prefix_cache=False):
            count += len(chunk.token_ids)
        return count

    began, cpu = time.perf_counter(), cpu_seconds(llm)
    counts = await asyncio.gather(*(one(i) for i in range(STREAMS)))
    n = sum(counts)
    return n / (time.perf_counter() - began), (cpu_seconds(llm) - cpu) / n * 1e3


async def first_token(llm: AsyncLlama) -> float:
    """Milliseconds until the first chunk, the median of 20 requests."""
    found = []
    for _ in range(20):
        began = time.perf_counter()
        async for _ in llm.stream("The", max_tokens=2, ignore_eos=True, prefix_cache=False, temperature=0):
            found.append((time.perf_counter() - began) * 1e3)
            break
    return statistics.median(found)


async def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    engines = {
        name: await AsyncLlama.load(given.model, n_ctx=128, n_parallel=STREAMS, isolate=name == "isolated")
        for name in ("plain", "isolated")
    }
    for name, llm in engines.items():
        await streams(llm, 4)  # warm
        found[name] = {"tokens_per_s": [], "cpu_ms": [], "first_token_ms": []}
    for _ in range(given.rounds):
        for name, llm in engines.items():
            rate, cpu = await streams(llm, given.tokens)
            found[name]["tokens_per_s"].append(rate)
            found[name]["cpu_ms"].append(cpu)
            found[name]["first_token_ms"].append(await first_token(llm))
    for name, llm in engines.items():
        llm.close()
        print(name, json.dumps({k: [round(x, 2) for x in v] for k, v in found[name].items()}))
    rates, cpus, firsts = (
        [statistics.median(found[name][what]) for name in ("plain", "isolated")]
        for what in ("tokens_per_s", "cpu_ms", "first_token_ms")
    )
    print(f"throughput {rates[0]:.1f} -> {rates[1]:.1f} tokens/s ({(rates[1] / rates[0] - 1) * 100:+.1f} %)")
    print(f"CPU time {cpus[0]:.3f} -> {cpus[1]:.3f} ms a token ({(cpus[1] / cpus[0] - 1) * 100:+.1f} %)")
    print(f"first token {firsts[0]:.2f} -> {firsts[1]:.2f} ms ({firsts[1] - firsts[0]:+.2f} ms)")


if __name__ == "__main__":
    asyncio.run(main())
