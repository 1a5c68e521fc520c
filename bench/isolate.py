"""What isolate=True costs: tokens a second of 32 streams, their CPU time, and the time to the first token of one.

    python -m bench.isolate [-m MODEL] [-r 5] [--tokens 48] [--json bench/results/isolate.json]

The model is a tiny one, whose time is the engine's own work; -m names another. Both sides are loaded in one run and
measured in turns. The CPU time is of both processes: on a machine that others use too it says more than the clock.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from llcuda_ffi import AsyncLlama
from tests.support.tiny_model import make_tiny_llama

from . import report

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
    p = report.parser(__doc__, rounds=5)
    p.add_argument("--tokens", type=int, default=48)
    p.set_defaults(model="")
    a = p.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if not a.model:
            a.model = Path(folder) / "tiny.gguf"
            make_tiny_llama(a.model)
        engines = {
            name: await AsyncLlama.load(a.model, n_ctx=128, n_parallel=STREAMS, isolate=name == "isolated")
            for name in ("plain", "isolated")
        }
        settings = {"model": Path(a.model).name, "streams": STREAMS, "tokens": a.tokens}
        out = report.header("isolate", engines["plain"].llama.model.library, settings)
        for name, llm in engines.items():
            await streams(llm, 4)  # warm
            found[name] = {"cpu_ms": [], "first_token_ms": [], "tokens_per_s": []}
        for _ in range(a.rounds):
            for name, llm in engines.items():
                rate, cpu = await streams(llm, a.tokens)
                found[name]["tokens_per_s"].append(rate)
                found[name]["cpu_ms"].append(cpu)
                found[name]["first_token_ms"].append(await first_token(llm))
        for llm in engines.values():
            llm.close()
    units = {"cpu_ms": "CPU ms a token", "first_token_ms": "ms to the first token", "tokens_per_s": "tokens/s"}
    for name, values in found.items():
        out[name] = {what: report.line(f"{name}, {unit}", values[what], "", 3) for what, unit in units.items()}
    report.write(out, a.json)


if __name__ == "__main__":
    asyncio.run(main())
