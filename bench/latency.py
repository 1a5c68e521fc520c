"""Time to first token with a cached prefix; the longest gap of streams while a long prompt comes; a busy machine; how
long an event loop stands still.

python bench/latency.py [--only ttft|gap|busy|loop] [--json bench/results/latency.json]
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import sys
from contextlib import suppress
from time import perf_counter
from typing import Any

import report

from llcuda_ffi import AsyncLlama, Llama, SamplingParams
from llcuda_ffi.core.model import Model
from llcuda_ffi.errors import ContextOverflow

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=4)


def main() -> None:
    p = report.parser(__doc__, rounds=5)
    p.add_argument("--only", choices=["ttft", "gap", "busy", "loop"])
    p.add_argument("--seconds", type=float, default=2.0, help="of each slice of a busy measurement")
    p.add_argument("--slices", type=int, default=4, help="of each side in a round of the busy measurements, in turn")
    p.add_argument("--streams", type=int, nargs="*", default=[1, 32], help="of the busy measurements")
    p.add_argument("--spinners", type=int, nargs="*", default=[0, 1, 2], help="of the busy measurements")
    p.add_argument("--fixed", type=int, nargs="*", default=[1, 2], help="thread counts beside auto")
    a = p.parse_args()
    with Llama(a.model, n_ctx=2048, n_parallel=10, n_threads=a.threads) as llm:
        out = report.header("latency", llm.model.library, {"model": llm.model.path.name, "threads": a.threads})
        words = llm.tokenize_prompt("The story of a small dragon who lived in a cave at the edge of a village. " * 140)
        if a.only in (None, "ttft"):
            out["ttft"] = ttft(llm, [int(t) for t in words], a.rounds)
        if a.only in (None, "gap"):
            out["gap"] = gap(llm.model, [int(t) for t in words], a)
        model = llm.model
        if a.only in (None, "busy"):
            out["busy"] = busy(model, a)
        if a.only in (None, "loop"):
            out["loop"] = loop(a)
    report.write(out, a.json)


def ttft(llm: Llama, words: list[int], rounds: int) -> dict[str, Any]:
    """A 1,000-token prefix and 10 new tokens: all computed, and with the prefix in the cache."""
    cold, warm = [], []
    for i in range(rounds + 1):
        llm.clear_cache()
        # the first token differs from round to round: nothing is shared with an earlier one
        prefix = [1000 + i, *words[1:1000]]
        first = llm.generate(prefix + words[100:110], GREEDY)
        second = llm.generate(prefix + words[200:210], GREEDY)
        if second.usage.cached_tokens < 1000:
            raise RuntimeError(f"only {second.usage.cached_tokens} tokens were cached")
        if i:
            cold.append(first.timings.ttft_s * 1e3)
            warm.append(second.timings.ttft_s * 1e3)
    return {
        "cold_ms": report.line("TTFT, 1,010 tokens, cold", cold, "ms"),
        "cached_ms": report.line("TTFT, 1,000 of them cached", warm, "ms"),
        "share": report.line("cached / cold", report.ratios(warm, cold), "", 4),
    }


def gap(model: Model, words: list[int], a: Any) -> dict[str, Any]:
    """8 streams run in tasks; when each has had 10 tokens, a prompt of 1,500 tokens comes."""
    longest, usual, allowed, ubatches = [], [], [], []
    with Llama(model, n_ctx=2048, n_parallel=1, n_threads=a.threads) as alone:
        for i in range(a.rounds + 1):
            # the last micro-batch of such a prompt, whose tokens look back at all the others
            alone.generate([2000 + i, *words[1:988]], GREEDY, max_tokens=1)
            began = perf_counter()
            alone.generate([2000 + i, *words[1:1500]], GREEDY, max_tokens=1)
            ubatches.append(perf_counter() - began)
            times = asyncio.run(streams_and_prompt(model, words, i, a.threads))
            gaps = [late - early for row in times for early, late in itertools.pairwise(row[2:])]
            if i:
                longest.append(max(gaps) * 1e3)
                usual.append(statistics.median(gaps) * 1e3)
                allowed.append(max(gaps) / (3 * statistics.median(gaps) + ubatches[-1]))
    ubatch_s = [u * 1e3 for u in ubatches[1:]]
    return {
        "median_ms": report.line("8 streams, median gap between tokens", usual, "ms"),
        "longest_ms": report.line("longest gap while 1,500 tokens come", longest, "ms"),
        "ubatch_ms": report.line("the prompt's last micro-batch, alone", ubatch_s, "ms"),
        "of_allowed": report.line("longest / (3 medians + one micro-batch)", allowed, "", 3),
    }


async def streams_and_prompt(model: Model, words: list[int], i: int, threads: int) -> list[list[float]]:
    """When the tokens of each of the 8 streams came."""
    async with AsyncLlama(model, n_ctx=2048, n_parallel=10, n_threads=threads, prefix_cache=False) as llm:
        times: list[list[float]] = [[] for _ in range(8)]
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=60)
        running = asyncio.Event()

        async def stream(s: int) -> None:
            async for _ in llm.stream([3000 + 100 * i + s, *words[1:20]], params):
                times[s].append(perf_counter())
                if all(len(row) >= 10 for row in times):
                    running.set()

        async def late() -> None:
            await running.wait()
            await llm.generate([1500 + i, *words[1:1500]], GREEDY, max_tokens=1)

        await asyncio.gather(*(stream(s) for s in range(8)), late())
        return times


def busy(model: Model, a: Any) -> dict[str, Any]:
    """Tokens per second with other processes spinning: fixed thread counts, the first of them twice, and "auto".

    What a side differs from its own repetition is what the machine does: no ratio of others means more than that.
    """
    found: dict[str, Any] = {}
    for n in a.streams:
        sides: dict[str, Any] = {str(t): t for t in a.fixed} | {"again": a.fixed[0], "auto": "auto"}
        llms = {
            name: Llama(model, n_ctx=2048, n_parallel=n, n_threads=threads, prefix_cache=False)
            for name, threads in sides.items()
        }
        for spinning in a.spinners:
            children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(spinning)]
            speed: dict[str, list[float]] = {name: [] for name in sides}
            try:
                for _ in range(a.rounds):
                    slices: dict[str, list[float]] = {name: [] for name in sides}
                    for i in range(a.slices):
                        for name in list(sides)[:: -1 if i % 2 else 1]:
                            slices[name].append(steady(llms[name], n, a.seconds))
                    for name, values in slices.items():
                        speed[name].append(statistics.mean(values))
            finally:
                for child in children:
                    child.kill()
                    child.wait()
            key = f"{n} stream{'s' if n > 1 else ''}, {spinning} spinning"
            row: dict[str, Any] = {name: report.line(f"{key}, threads {name}", speed[name], "tok/s") for name in sides}
            better = [max(values) for values in zip(*(speed[str(t)] for t in a.fixed), strict=True)]
            row["auto_of_better"] = report.line(f"{key}, auto / better", report.ratios(speed["auto"], better), "", 3)
            again = report.ratios(speed["again"], speed[str(a.fixed[0])])
            row["again_of_first"] = report.line(f"{key}, {a.fixed[0]} / {a.fixed[0]}", again, "", 3)
            found[key] = row
        for llm in llms.values():
            llm.close()
    return found


def steady(llm: Llama, n: int, seconds: float) -> float:
    """Tokens per second of n requests that run for about so long; a warm machine is assumed."""
    params = SamplingParams(temperature=0.8, min_p=0.0, ignore_eos=True, max_tokens=2000)
    streams = [llm.stream(f"Story {i}. Once upon a time", params) for i in range(n)]
    for stream in streams:
        next(stream)
    made, began = 0, perf_counter()
    while perf_counter() - began < seconds:
        for stream in streams:
            chunk = next(stream, None)
            made += len(chunk.token_ids) if chunk is not None else 0
    took = perf_counter() - began
    for stream in streams:
        stream.close()
    llm.generate("x", max_tokens=1)  # a step, in which the cancelled ones are let go
    return made / took


def loop(a: Any) -> dict[str, Any]:
    """The longest that an event loop stands still while AsyncLlama is given much at once."""
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "a prompt of 3 MB": ("word " * 600_000, {}),
        "2,000 prompts at once": ([f"Story {i}" for i in range(2000)], {"max_tokens": 1}),
        "the first structured output": ("Is water wet?", {"json_schema": {"type": "boolean"}}),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(a.rounds):
        for name, (prompt, settings) in cases.items():
            found[name].append(asyncio.run(still(a, prompt, settings)) * 1e3)
    return {name: report.line(f"event loop, {name}", values, "ms") for name, values in found.items()}


async def still(a: Any, prompt: Any, settings: dict[str, Any]) -> float:
    """The longest gap of a task that does nothing, in seconds, until the answer or for three seconds."""
    async with AsyncLlama(a.model, n_ctx=2048, n_parallel=8, n_threads=a.threads) as llm:
        await llm.generate("Hi", max_tokens=1)
        work = asyncio.create_task(llm.generate(prompt, **settings))
        began = last = perf_counter()
        longest = 0.0
        while not work.done() and last - began < 3:
            await asyncio.sleep(0.001)
            now = perf_counter()
            longest, last = max(longest, now - last), now
        work.cancel()
        with suppress(asyncio.CancelledError, ContextOverflow):
            await work
        return longest


if __name__ == "__main__":
    main()
