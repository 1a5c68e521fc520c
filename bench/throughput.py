"""Many prompts at once: 32 prompts of 64 tokens each, over the raw batched loop with the same samplers.

Then the time that Python takes per generated token outside C calls, of `generate` and of 32 concurrent streams: every
C call of a run is timed by a wrapper, the rest of the run is Python (CPU time of the thread); what the wrapper adds is
measured and taken off. With --peer also llama-cpp-python's own code over the same libllama, one prompt after another
(it has no batches).

    python bench/throughput.py [-m gemma3-270m] [--peer FOLDER] [--json bench/results/throughput.json]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter, process_time, thread_time
from typing import Any

import c_time
import report
from peer import Peer
from raw import RawLoop

from llcuda_ffi import Llama, SamplingParams

TOPICS = (
    "a small dragon", "the sea at night", "an old clock", "two friends", "a train that never stops", "the first snow",
    "a garden on the moon", "a lost letter",
)  # fmt: skip
PROMPTS = [f"Story {i + 1}. Once upon a time there was {TOPICS[i % len(TOPICS)]}, and" for i in range(32)]
N_CTX = 256


def main() -> None:
    p = report.parser(__doc__, rounds=5)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--prompts", type=int, default=32, choices=range(1, 33), metavar="1..32")
    p.add_argument("--peer", metavar="FOLDER", help="a folder with llama_cpp 0.3.36 and what it imports")
    p.add_argument("--only-python", action="store_true", help="only the time of Python per token")
    a = p.parse_args()
    prompts = PROMPTS[: a.prompts]
    params = SamplingParams(
        max_tokens=a.tokens,
        min_p=0.0,
        temperature=0.8,
        top_k=40,
        top_p=0.95,
        ignore_eos=True,
        seed=1,
        prefix_cache=False,
    )
    if a.only_python:
        timed = c_time.install()
        with Llama(a.model, n_ctx=N_CTX, n_parallel=a.prompts, n_threads=a.threads) as llm:
            out = report.header("python time", llm.model.library, {"model": llm.model.path.name, "prompts": a.prompts})
            out["python_us_per_token"] = python_time(timed, llm, prompts, params, a.rounds)
        report.write(out, a.json)
        return
    with Llama(a.model, n_ctx=N_CTX, n_parallel=a.prompts, n_threads=a.threads) as llm:
        settings = {
            "model": llm.model.path.name,
            "prompts": a.prompts,
            "tokens": a.tokens,
            "threads": a.threads,
        }
        out = report.header("throughput", llm.model.library, settings)
        speed(out, llm, prompts, params, a)
    report.write(out, a.json)


def speed(out: dict[str, Any], llm: Llama, prompts: list[str], params: SamplingParams, a: Any) -> None:
    """All sides in turn, round by round."""
    raw = RawLoop(llm.model, n_ctx=N_CTX, n_parallel=len(prompts), n_threads=a.threads)
    ids = [[int(t) for t in llm.tokenize_prompt(p)] for p in prompts]
    total = len(prompts) * a.tokens
    sides: dict[str, Callable[[], object]] = {
        "raw": lambda: raw.run(ids, a.tokens, params),
        "generate": lambda: llm.generate(prompts, params),
    }
    peer = None
    if a.peer:
        peer = Peer(a.peer, llm, n_ctx=N_CTX, n_threads=a.threads)
        out["peer"] = peer.name
        sides["peer"] = lambda: peer.complete(ids, a.tokens)
    took: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(a.rounds + 1):
        for name in names if i % 2 else names[::-1]:
            began, cpu_began = perf_counter(), process_time()
            sides[name]()
            if i:
                took[name].append(perf_counter() - began)
                cpu[name].append(process_time() - cpu_began)
    if peer is not None:
        peer.close()
    raw.close()
    out["tokens_per_s"] = {n: report.line(n, [total / t for t in took[n]], "tok/s") for n in names}
    out["ratio"] = {"raw": report.line("generate / raw", report.ratios(took["raw"], took["generate"]), "", 3)}
    out["ratio"]["raw_cpu"] = report.line(
        "generate / raw, by CPU time", report.ratios(cpu["raw"], cpu["generate"]), "", 3
    )
    out["ratio"]["raw_best"] = min(took["raw"]) / min(took["generate"])
    print(f"  generate / raw, best round of each: {out['ratio']['raw_best']:.3f}")
    if peer is not None:
        out["ratio"]["peer"] = report.line("generate / peer", report.ratios(took["peer"], took["generate"]), "", 2)


def python_time(
    timed: c_time.TimedLibrary, llm: Llama, prompts: list[str], params: SamplingParams, rounds: int
) -> dict[str, Any]:
    """Microseconds of Python per generated token: of whole runs, and of the median step in the midst of one."""
    outside, inside = c_time.overhead(timed)
    scheduler = llm.engine.schedulers[0]
    steps: list[float] = []

    def run(step: Callable[[], bool], everything: Callable[[], object]) -> float:
        """The run's Python time per token; the time of each full step goes into `steps`."""

        def timed_step() -> bool:
            c, n, began = timed.seconds, timed.calls, thread_time()
            going = step()
            took = thread_time() - began
            calls = timed.calls - n
            if calls >= len(prompts):  # every request has a token in it
                steps.append((took - (timed.seconds - c) - calls * outside) / len(prompts))
            return going

        scheduler.step = timed_step  # type: ignore[method-assign]
        c, n, began = timed.seconds, timed.calls, thread_time()
        everything()
        took = thread_time() - began
        return (took - (timed.seconds - c) - (timed.calls - n) * outside) / (len(prompts) * (params.max_tokens or 1))

    found: dict[str, Any] = {}
    step = scheduler.step
    for name in ("generate", "stream"):
        whole, middle = [], []
        for i in range(rounds + 1):
            steps.clear()
            if name == "generate":
                value = run(step, lambda: llm.generate(prompts, params))
            else:
                value = run(step, lambda: stream_all(llm, prompts, params))
            if i:
                whole.append(value * 1e6)
                middle.append(statistics.median(steps) * 1e6)
        found[f"{name}_whole"] = report.line(f"Python per token, {name}, whole run", whole, "µs", 2)
        found[f"{name}_step"] = report.line(f"Python per token, {name}, median step", middle, "µs", 2)
    scheduler.step = step  # type: ignore[method-assign]
    print(f"  (the wrapper adds {outside * 1e6:.2f} µs per C call, taken off; {inside * 1e6:.2f} µs count as C)")
    return found


def stream_all(llm: Llama, prompts: list[str], params: SamplingParams) -> None:
    """All prompts streamed at once in this thread: the iterators are asked in turn."""
    going = [llm.stream(p, params) for p in prompts]
    while going:
        going = [stream for stream in going if next(stream, None) is not None]


if __name__ == "__main__":
    main()
