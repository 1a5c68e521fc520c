"""Many short requests from threads and from asyncio, some cancelled at random; run by hand.

Each prompt has a known greedy answer: every finished request must give just that, every cancelled one a beginning of
it. At the end nothing may run or wait, the KV cache must be empty, and the memory must not have grown; on GPUs theirs
is looked at too.

    python bench/soak.py [--requests 20000] [--device cuda] [--json bench/results/soak.json]
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

import report
from gpu import MIB, vram

from llcuda_ffi import AsyncLlama, Completion, Llama, SamplingParams

WORKERS = 64
PROMPTS = ["Count: " + " ".join(str(n) for n in range(i, i + 9 * k, k)) for i in range(1, 33) for k in (1, 2, 3, 5)]
LEAD = 1.5  # natural log; between batches a GPU moves those of a small quantized model by up to 0.7
# results must not depend on who else is in the batch: without the prefix cache
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, prefix_cache=False)


def rss_mib() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def vram_mib() -> float:
    """Memory in use on all GPUs."""
    return sum(vram()) / MIB


def lead(one: Completion) -> float:
    """By how much the chosen tokens are likelier than the next ones, at least."""
    return min(token.top[0][1] - token.top[1][1] for token in one.logprobs or ())


class Tally:
    """What became of the requests; raises nothing, counts."""

    def __init__(self, answers: dict[str, list[int]]) -> None:
        self.answers, self.counts = answers, Counter[str]()
        self.lock = threading.Lock()

    def add(self, prompt: str, tokens: list[int], *, cancelled: bool) -> None:
        """A request is over."""
        answer = self.answers[prompt]
        right = tokens == (answer[: len(tokens)] if cancelled else answer)
        kind = ("cancelled" if cancelled else "finished") if right else "WRONG"
        with self.lock:
            self.counts[kind] += 1


def from_threads(llm: Llama, tally: Tally, requests: int, share: float) -> None:
    """Each thread asks, and leaves some of its streams early."""

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(requests // WORKERS):
            prompt = dice.choice(PROMPTS)
            if dice.random() < share:
                stream, tokens = llm.stream(prompt, GREEDY), []
                leave = dice.randrange(0, 3)
                for chunk in stream:
                    tokens += chunk.token_ids
                    if len(tokens) > leave:
                        break
                stream.close()  # type: ignore[attr-defined]
                tally.add(prompt, tokens, cancelled=True)
            else:
                tally.add(prompt, llm.generate(prompt, GREEDY).token_ids, cancelled=False)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def from_tasks(llm: AsyncLlama, tally: Tally, requests: int, share: float) -> None:
    """Each task asks, and cancels some of its own."""

    async def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(requests // WORKERS):
            prompt = dice.choice(PROMPTS)
            task = asyncio.ensure_future(llm.generate(prompt, GREEDY))
            if dice.random() < share:
                await asyncio.sleep(dice.random() * 0.3)
                task.cancel()
            try:
                tokens, cancelled = (await task).token_ids, False
            except asyncio.CancelledError:
                tokens, cancelled = [], True
            tally.add(prompt, tokens, cancelled=cancelled)

    await asyncio.gather(*(work(i) for i in range(WORKERS)))


def finish(llm: Llama, tally: Tally, requests: int, began: float, before: tuple[float, float]) -> dict[str, Any]:
    """Check what must hold at the end."""
    llm.generate("x", GREEDY, max_tokens=1)  # a step, in which the last cancelled ones are let go
    llm.clear_cache()
    took, m = perf_counter() - began, llm.metrics()
    memory, n_seq = llm.context.memory, llm.context.params.n_seq_max
    kv = [p for p in (memory.positions(s) for s in range(n_seq)) if p] if memory else []
    found = {
        **tally.counts,
        "seconds": round(took, 1),
        "running": m.running,
        "queued": m.queued,
        "kv_sequences": len(kv),
        "rss_growth_mib": round(rss_mib() - before[0], 1),
        "vram_growth_mib": round(vram_mib() - before[1], 1),
    }
    print("  " + ", ".join(f"{k} {v}" for k, v in found.items()), flush=True)
    asked = requests // WORKERS * WORKERS
    if tally.counts["WRONG"] or sum(tally.counts.values()) != asked or m.running or m.queued or kv:
        raise SystemExit("FAILED")
    return found


def main() -> None:
    p = report.parser(__doc__, rounds=1)
    p.add_argument("--requests", type=int, default=20_000, help="half from threads, half from asyncio")
    p.add_argument("--parallel", type=int, default=WORKERS, help="sequences of each Llama")
    p.add_argument("--device", default="auto")
    p.add_argument("--cancel", type=float, default=0.1, help="share of them that is cancelled")
    a = p.parse_args()
    half = a.requests // 2
    settings: dict[str, Any] = {"n_ctx": 64, "n_parallel": a.parallel, "n_threads": a.threads, "device": a.device}
    with Llama(a.model, **settings) as llm:
        out = report.header("soak", llm.model.library, {"requests": a.requests, "cancelled": a.cancel, **settings})
        # a batch computes in another order than one alone: only answers are asked whose tokens lead by far
        alone = {prompt: llm.generate(prompt, GREEDY, logprobs=2) for prompt in PROMPTS}
        answers = {prompt: one.token_ids for prompt, one in alone.items() if lead(one) >= LEAD}
        PROMPTS[:] = answers
        print(f"  {len(PROMPTS)} prompts with known answers")
        from_threads(llm, Tally(answers), 2 * WORKERS, a.cancel)  # warm-up
        tally, began, before = Tally(answers), perf_counter(), (rss_mib(), vram_mib())
        from_threads(llm, tally, half, a.cancel)
        out["threads"] = finish(llm, tally, half, began, before)
        model = llm.model
        tally, began = Tally(answers), perf_counter()

        async def run() -> dict[str, Any]:
            async with AsyncLlama(model, **settings) as other:
                await from_tasks(other, Tally(answers), 2 * WORKERS, a.cancel)
                before = rss_mib(), vram_mib()
                await from_tasks(other, tally, half, a.cancel)
                other.llama.engine.stop()  # no thread may step beside the check
                return finish(other.llama, tally, half, began, before)

        out["asyncio"] = asyncio.run(run())
    report.write(out, a.json)


if __name__ == "__main__":
    main()
