"""Prompts that were computed before: the second turn, the same prompt again, and a turn after kill -9 and a restart.

On tiny models of each kind of memory, or on models by name. Times to the first token are compared with computing all of
the same prompt; the tiny heads of tiny models make a short chunk over a long cache dearer than it is in real shapes.

And what keeping costs where nothing is reused: prompts without a common beginning, with everything kept by default and
with nothing kept, in turns.

With --llama-server PROGRAM, how much of the same prompts in the same order llama-server reuses, and how much we do,
both with their defaults.

python bench/reuse.py [-r 3] [--tokens 2000] [--width 1024] [--kinds llama,smollm2-135m,…] [--steps 60] [--json FILE]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if "--width" in sys.argv:
    os.environ["LLCUDA_FFI_TINY_WIDTH"] = sys.argv[sys.argv.index("--width") + 1]

import report
from llama_server import LlamaServer

from llcuda_ffi import Llama, Model, hub
from llcuda_ffi.core.batch import Batch
from tests.support.random_reuse import RandomReuse, Tally
from tests.support.tiny_architectures import TINY, lively

KINDS = "llama,deepseek2,gemma3,mamba,lfm2,lfm2-window,granite-hybrid,qwen35"
# whose cost is measured against nothing kept
SETTINGS: dict[str, Any] = {"default": {}, "nothing": {"prefix_cache": False}}
WANTED: dict[str, Any] = {"max_tokens": 32, "temperature": 0, "ignore_eos": True}


def prompt(n: int) -> list[int]:
    """n tokens."""
    return [3 + i * i * 7 % 240 for i in range(n)]


def load(path: Path | Model, n: int, **settings: Any) -> Llama:
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


def cost(path: Path, n: int, pairs: int, **measured: Any) -> dict[str, Any]:
    """What requests of n tokens that reuse nothing cost more where everything is kept by default, as a share of the
    CPU time where nothing is; with its standard error.

    Both sides have the same weights, one thread, and ask in turns. As a whole the two differ by less than the machine
    does from one moment to the next, so the cost is the sum of its parts: what is not spent in computing batches, of
    both sides; and what batches that only one of them has take more than their tokens do among the others.

    Args:
        measured: settings of the side that is measured, if not the defaults.
    """
    rng = np.random.default_rng(1)
    whole, parts = [], []
    with (
        Model.load(path) as model,
        load(model, n, n_threads=1, **measured) as keeps,
        load(model, n, n_threads=1, prefix_cache=False) as plain,
    ):
        batches = [timed(llm) for llm in (keeps, plain)]
        for i in range(-1, pairs):
            took = [0.0, 0.0]
            for side in (0, 1) if i % 2 else (1, 0):
                tokens = rng.integers(3, 240, n).tolist()
                batches[side].clear()
                began = process_time()
                (keeps, plain)[side].generate(tokens, max_tokens=8, temperature=0, ignore_eos=True)
                took[side] = process_time() - began
            if i < 0:
                continue
            rest = [took[side] - sum(seconds for _, seconds in batches[side]) for side in (0, 1)]
            whole.append(took[0] / took[1] - 1)
            parts.append((rest[0] - rest[1], more_batches(*batches), took[1]))
    total = median(part[2] for part in parts)
    shares = {"around": [part[0] / total for part in parts], "batches": [part[1] / total for part in parts]}
    shares |= {"sum": [(part[0] + part[1]) / total for part in parts], "whole": whole}
    return {"pairs": pairs, "seconds": total, **{name: center(values) for name, values in shares.items()}}


def center(values: list[float]) -> tuple[float, float]:
    """The median, and its standard error where values scatter normally."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(middle), float(1.253 * (high - low) / 1.349 / len(values) ** 0.5)


def timed(llm: Llama) -> list[tuple[int, float]]:
    """The batches that are computed from now on: tokens, CPU seconds."""
    batches: list[tuple[int, float]] = []
    compute = llm.context.decode_sound

    def decode_sound(batch: Batch) -> None:
        began = process_time()
        compute(batch)
        batches.append((batch.n_tokens, process_time() - began))

    llm.context.decode_sound = decode_sound  # type: ignore[method-assign]
    return batches


def more_batches(ours: list[tuple[int, float]], plain: list[tuple[int, float]]) -> float:
    """Seconds that the smallest batches of ours, by which there are more, took more than as many tokens take in those
    of the other side that ours has not."""
    extra = len(ours) - len(plain)
    if not extra:
        return 0.0
    small = sorted(batch for batch in ours if batch[0] > 1)[:extra]
    sizes = Counter(size for size, _ in ours)
    others = [batch for batch in plain if batch[0] not in sizes]
    rate = sum(seconds for _, seconds in others) / sum(size for size, _ in others)
    return sum(seconds - size * rate for size, seconds in small)


Asked = list[tuple[list[list[int]], int]]  # prompts that come together, tokens of each answer


class Recorded:
    """A Llama that notes which prompts it is asked together, and for how many tokens."""

    def __init__(self, llm: Llama) -> None:
        self.llm = llm
        self.asked: Asked = []

    def generate(self, prompts: Any, **settings: Any) -> Any:
        """What may reuse something is noted; answers longer than the context are not."""
        if settings.get("prefix_cache", True) and "overflow" not in settings:
            several = prompts if isinstance(prompts[0], list) else [prompts] * settings.get("n", 1)
            self.asked.append((several, settings["max_tokens"]))
        return self.llm.generate(prompts, **settings)

    def stream(self, prompt: list[int], **settings: Any) -> Any:
        """One that is left early is noted as one of two tokens."""
        self.asked.append(([prompt], 2))
        return self.llm.stream(prompt, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)


def beside(path: Path, program: Path, asked: Asked) -> dict[str, int]:
    """Tokens of the prompts that were asked, and those that need not be computed: with an endless memory, of ours, and
    of llama-server, with three slots."""
    found = {"prompt_tokens": sum(len(prompt) for prompts, _ in asked for prompt in prompts)}
    found |= {"prompts": sum(len(prompts) for prompts, _ in asked), "endless": 0, "ours": 0}
    seen: list[list[int]] = []
    with Llama(path, n_ctx=512, n_parallel=3, n_threads=1) as llm:
        for prompts, most in asked:
            found["endless"] += sum(max((shared(p, old) for old in seen), default=0) for p in prompts)
            answers = llm.generate(prompts, max_tokens=most, temperature=0, ignore_eos=True)
            found["ours"] += sum(answer.usage.cached_tokens for answer in answers)
            seen += [p + answer.token_ids for p, answer in zip(prompts, answers, strict=True)]
    server = LlamaServer(program, path, n_ctx=512, n_parallel=3, n_threads=1)
    found["llama_server"] = sum(sum(server.generate(prompts, most)) for prompts, most in asked)
    server.close()
    return found


def again(path: Path, program: Path, n: int) -> dict[str, list[int]]:
    """Tokens that were not computed, of ours and of llama-server, of a prompt of n tokens given again, then of its
    first seven eighths, then of its first third."""
    asked = [prompt(n), prompt(n)[: n * 7 // 8], prompt(n)[: n // 3]]
    found = {"tokens": [*map(len, asked)]}
    with load(path, n) as llm:
        llm.generate(prompt(n), max_tokens=2)
        found["ours"] = [llm.generate(p, max_tokens=2).usage.cached_tokens for p in asked]
    server = LlamaServer(program, path, n_ctx=n + 512, n_parallel=2, n_threads=1)
    server.generate([prompt(n)], 2)
    found["llama_server"] = [server.generate([p], 2)[0] for p in asked]
    server.close()
    return found


def shared(a: list[int], b: list[int]) -> int:
    """Tokens at the beginning that are the same, all but the last of a at most."""
    most = min(len(a) - 1, len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)


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
    p.add_argument("--cost-pairs", type=int, default=0, help="pairs of requests that measure the cost without reuse")
    p.add_argument("--cost-of", default="default", help=f"settings, of {', '.join(SETTINGS)}")
    p.add_argument("--kinds", default=KINDS)
    p.add_argument("--steps", type=int, default=60, help="random requests of each kind")
    p.add_argument("--seeds", type=int, default=1, help="runs of random requests")
    p.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="compare with it, on the random requests")
    a = p.parse_args()
    rows: dict[str, Any] = {}
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in a.kinds.split(","):
            path = Path(folder, kind)
            if kind in TINY:
                file = lively(TINY[kind]())
                # llama-server gives a slot no more tokens than that
                file.metadata[f"{file.metadata['general.architecture']}.context_length"] = a.tokens + 512
                file.write(path)
            else:
                path = hub.resolve(kind)
            row = rows[kind] = {}
            with load(path, a.tokens) as llm:
                settings = {"tokens": a.tokens, "width": a.width, "steps": a.steps}
                if a.llama_server:
                    settings["llama-server"] = LlamaServer.version(a.llama_server)
                out = out or report.header("reuse", llm.model.library, settings)
                out["on_gpu"] = llm.model.placement.on_gpu
                runs = [second_turn(llm, a.tokens) for _ in range(a.rounds)]
                row["checkpoint_bytes"] = llm.metrics().checkpoint_bytes
            print(f"  {kind}:", flush=True)
            if a.rounds:
                restarts = [after_restart(path, a.tokens) for _ in range(a.rounds)]
                cold, warm = median(run[1] for run in runs), median(run[0] for run in runs)
                restart = median(seconds for seconds, _ in restarts)
                row |= {"cold_s": cold, "second_turn": warm / cold, "restart": restart / cold}
                row |= {"same_prompt_kept": runs[0][2], "restart_kept": restarts[0][1]}
                print(
                    f"    cold {cold * 1000:6.1f} ms; second turn {warm / cold:5.1%}, after a restart "
                    f"{restart / cold:5.1%}; same prompt: {runs[0][2]} of {a.tokens} kept",
                    flush=True,
                )
            if a.steps:
                row |= random_requests(path, a.steps, a.seeds, Path(folder), a.llama_server)
                if a.llama_server:
                    row["again"] = again(path, a.llama_server, a.tokens)
            for name in a.cost_of.split(",") if a.cost_pairs else ():
                found = row.setdefault("cost", {})[name] = cost(path, a.tokens, a.cost_pairs, **SETTINGS[name])
                names = ("around", "batches", "sum", "whole")
                told = ", ".join(f"{part} {found[part][0]:+.2%} ± {found[part][1]:.2%}" for part in names)
                print(f"    cost, {name}: {told} of {found['seconds']:.3f} s", flush=True)
    out["kinds"] = rows
    if a.llama_server and a.steps:
        table(rows)
    report.write(out, a.json)


def random_requests(path: Path, steps: int, seeds: int, folder: Path, program: Path | None) -> dict[str, Any]:
    """The property test's requests, compared with cold runs; and the same prompts beside llama-server."""
    tally, compared = Tally(), Counter[str]()
    for seed in range(1, seeds + 1):
        run = RandomReuse(path, seed)
        run.warm = recorded = Recorded(run.warm)  # type: ignore[assignment]
        done = run.run(steps, folder)
        run.close()
        for name in ("requests", "prompt_tokens", "cached_tokens"):
            setattr(tally, name, getattr(tally, name) + getattr(done, name))
        tally.wrong += done.wrong
        if program:
            compared.update(beside(path, program, recorded.asked))
    print(
        f"    random: {tally.share:.0%} of prompt tokens kept, {len(tally.wrong)} of {tally.requests} wrong", flush=True
    )
    found = {"random_share": tally.share, "random_requests": tally.requests, "random_wrong": len(tally.wrong)}
    return {**found, "beside": dict(compared)} if program else found


def table(rows: dict[str, Any]) -> None:
    """Print what was not computed, of both."""
    first = next(iter(rows.values()))["again"]["tokens"]
    heads = ["prompts", "endless memory", "ours", "llama-server"]
    heads += [f"{n} of {first[0]} again" for n in first]
    print("\n| |" + "|".join(heads) + "|\n|-|" + "-|" * len(heads))
    for kind, row in rows.items():
        asked = row["beside"]
        shares = [asked[name] / asked["prompt_tokens"] for name in ("endless", "ours", "llama_server")]
        parts = [f"{share:.0%}" for share in shares]
        parts += [f"{a} / {b}" for a, b in zip(row["again"]["ours"], row["again"]["llama_server"], strict=True)]
        print(f"|{kind}|{asked['prompts']}|" + "|".join(parts) + "|")


if __name__ == "__main__":
    main()
