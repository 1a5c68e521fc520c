"""Prompts that were computed before: the second turn, the same prompt again, and a turn after kill -9 and a restart.

On tiny models of each kind of memory, or on models by name. Times to the first token are compared with computing all of
the same prompt; the tiny heads of tiny models make a short chunk over a long cache dearer than it is in real shapes.

And what keeping costs where nothing is reused: prompts without a common beginning, with everything kept by default and
with nothing kept, in turns.

python bench/reuse.py [-r 3] [--tokens 2000] [--width 1024] [--kinds llama,smollm2-135m,…] [--steps 60] [--json FILE]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if "--width" in sys.argv:
    os.environ["LLCUDA_FFI_TINY_WIDTH"] = sys.argv[sys.argv.index("--width") + 1]

import report

from llcuda_ffi import Llama, hub
from tests.support.random_reuse import RandomReuse, Tally
from tests.support.tiny_architectures import TINY, lively

KINDS = "llama,deepseek2,gemma3,mamba,lfm2,lfm2-window,granite-hybrid,qwen35"
WANTED: dict[str, Any] = {"max_tokens": 32, "temperature": 0, "ignore_eos": True}


def prompt(n: int) -> list[int]:
    """n tokens."""
    return [3 + i * i * 7 % 240 for i in range(n)]


def load(path: Path, n: int, **settings: Any) -> Llama:
    """A Llama for two conversations, that has computed something before; one thread where models are tiny."""
    threads = 1 if "--width" not in sys.argv else "auto"
    llm = Llama(path, **{"n_ctx": n + 512, "n_parallel": 2, "n_threads": threads, **settings})
    llm.generate([5, 6, 7], max_tokens=2, prefix_cache=False)
    return llm


def second_turn(llm: Llama, n: int) -> tuple[float, float, int]:
    """Seconds to the second turn's first token, and of the same prompt cold; and tokens kept of the first prompt."""
    llm.clear_cache()
    first = llm.generate(prompt(n), **WANTED)
    going_on = [*prompt(n), *first.token_ids, *prompt(30)]
    warm = llm.generate(going_on, max_tokens=1)
    again = llm.generate(prompt(n), max_tokens=1)  # after the turn: it gives up the answer
    cold = llm.generate(going_on, max_tokens=1, prefix_cache=False)
    return warm.timings.ttft_s, cold.timings.ttft_s, again.usage.cached_tokens


def after_restart(path: Path, n: int) -> tuple[float, int]:
    """Seconds to the first token of the second turn in a new process's Llama, and the tokens not computed; the process
    that computed the first turn was killed."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLCUDA_FFI_DISK_CACHE"] = folder
        child = subprocess.Popen([sys.executable, __file__, "--child", str(path), str(n)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        answer = [int(token) for token in child.stdout.readline().split()]
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with load(path, n, disk_cache="4GiB") as llm:
            warm = llm.generate([*prompt(n), *answer, *prompt(30)], max_tokens=1)
        return warm.timings.ttft_s, warm.usage.cached_tokens


def cost(path: Path, n: int, rounds: int) -> dict[str, list[float]]:
    """Time of requests that reuse nothing, with all that is kept by default, over that with nothing kept, by the clock
    and by CPU time: the median of rounds of one request each, in turns, one thread, and its standard error."""
    rng = np.random.default_rng(1)
    with load(path, n, n_threads=1) as keeps, load(path, n, n_threads=1, prefix_cache=False) as plain:
        ratios = []
        for i in range(rounds + 2):
            seconds = []
            for llm in (keeps, plain) if i % 2 else (plain, keeps):
                tokens = rng.integers(3, 240, n).tolist()
                began = np.array([perf_counter(), process_time()])
                llm.generate(tokens, max_tokens=8, temperature=0, ignore_eos=True)
                seconds.append(np.array([perf_counter(), process_time()]) - began)
            ratios.append(seconds[0] / seconds[1] if i % 2 else seconds[1] / seconds[0])
        kept = np.array(ratios[2:])
        low, middle, high = np.percentile(kept, (25, 50, 75), axis=0)
        # of a median of values that scatter normally
        error = 1.253 * (high - low) / 1.349 / len(kept) ** 0.5
        return {name: [float(middle[i]), float(error[i])] for i, name in enumerate(("clock", "cpu"))}


def child(path: Path, n: int) -> None:
    """Compute a first turn, say what it was, and wait to be killed."""
    from time import sleep

    with load(path, n, disk_cache="4GiB") as llm:
        first = llm.generate(prompt(n), **WANTED)
        sleep(1)  # the writing thread
        print(*first.token_ids, flush=True)
        sys.stdin.read()


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
        return
    p = report.parser(__doc__, rounds=3)
    p.add_argument("--tokens", type=int, default=2000)
    p.add_argument("--width", type=int, default=32, help="embedding width of the tiny models; heads of 64 from 256 on")
    p.add_argument("--cost-rounds", type=int, default=0, help="rounds of requests that reuse nothing")
    p.add_argument("--kinds", default=KINDS)
    p.add_argument("--steps", type=int, default=60, help="random requests of each kind")
    a = p.parse_args()
    rows: dict[str, Any] = {}
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in a.kinds.split(","):
            path = Path(folder, kind)
            if kind in TINY:
                lively(TINY[kind]()).write(path)
            else:
                path = hub.resolve(kind)
            with load(path, a.tokens) as llm:
                out = out or report.header(
                    "reuse", llm.model.library, {"tokens": a.tokens, "width": a.width, "steps": a.steps}
                )
                out["on_gpu"] = llm.model.placement.on_gpu
                runs = [second_turn(llm, a.tokens) for _ in range(a.rounds)]
                memory = llm.metrics().checkpoint_bytes
            restarts = [after_restart(path, a.tokens) for _ in range(a.rounds)]
            tally = Tally()
            if a.steps:
                run = RandomReuse(path, 1)
                tally = run.run(a.steps, Path(folder))
                run.close()
            cold, warm = median(run[1] for run in runs), median(run[0] for run in runs)
            restart = median(seconds for seconds, _ in restarts)
            kept = cost(path, a.tokens, a.cost_rounds) if a.cost_rounds else None
            rows[kind] = {
                "cold_s": cold,
                "second_turn": warm / cold,
                "restart": restart / cold,
                "same_prompt_kept": runs[0][2],
                "restart_kept": restarts[0][1],
                "random_share": tally.share,
                "random_requests": tally.requests,
                "random_wrong": len(tally.wrong),
                "checkpoint_bytes": memory,
                "cost": kept,
            }
            print(
                f"  {kind:>15}: cold {cold * 1000:6.1f} ms; second turn {warm / cold:5.1%}, after a restart "
                f"{restart / cold:5.1%}; same prompt: {runs[0][2]} of {a.tokens} kept; random: {tally.share:.0%} of "
                f"prompt tokens kept, {len(tally.wrong)} of {tally.requests} wrong; checkpoints {memory} "
                f"bytes; cost {kept}",
                flush=True,
            )
    out["kinds"] = rows
    report.write(out, a.json)


if __name__ == "__main__":
    main()
