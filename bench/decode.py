"""One stream: tokens per second of `Llama.generate` and `Llama.stream` over the raw loop of C calls.

Alternating in one run, prompt included, the same samplers; then the peak memory of each side in a process of its own.
With --peer also llama-cpp-python's own code over the same libllama.

    python bench/decode.py [--tokens 256] [--peer FOLDER] [--json bench/results/decode.json]
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter, process_time

import report
from peer import Peer
from raw import RawLoop

from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.core.model import Model
from llcuda_ffi.hub.references import resolve

PROMPT = "Once upon a time there was a small dragon who lived in a cave at the edge of a village."
N_CTX = 2048


def main() -> None:
    p = report.parser(__doc__, rounds=9)
    p.add_argument("--tokens", type=int, default=256)
    p.add_argument("--peer", metavar="FOLDER", help="a folder with llama_cpp 0.3.36 and what it imports")
    p.add_argument("--child", choices=["raw", "generate", "default"], help="one run, print the peak memory (internal)")
    a = p.parse_args()
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
    if a.child:
        child(a.child, a.model, a.threads, params)
        return
    llm = Llama(a.model, n_ctx=N_CTX, n_threads=a.threads)
    raw = RawLoop(llm.model, n_ctx=N_CTX, n_parallel=1, n_threads=a.threads)
    prompt = [int(t) for t in llm.tokenize_prompt(PROMPT)]
    settings = {
        "model": llm.model.path.name,
        "tokens": a.tokens,
        "threads": a.threads,
        "prompt_tokens": len(prompt),
    }
    out = report.header("decode", llm.model.library, settings)

    def stream() -> None:
        for _ in llm.stream(PROMPT, params):
            pass

    sides: dict[str, Callable[[], object]] = {
        "raw": lambda: raw.run_one(prompt, a.tokens, params),
        "generate": lambda: llm.generate(PROMPT, params),
        "stream": stream,
    }
    peer = None
    if a.peer:
        peer = Peer(a.peer, llm, n_ctx=N_CTX, n_threads=a.threads)
        out["peer"] = peer.name
        sides["peer"] = lambda: peer.complete([prompt], a.tokens)
    speed: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(a.rounds + 1):
        for name in names if i % 2 else names[::-1]:
            began, cpu_began = perf_counter(), process_time()
            sides[name]()
            if i:
                speed[name].append(a.tokens / (perf_counter() - began))
                cpu[name].append((process_time() - cpu_began) / a.tokens * 1e3)
    out["tokens_per_s"] = {name: report.line(name, speed[name], "tok/s") for name in names}
    out["cpu_ms_per_token"] = {name: report.line(f"{name}, CPU time per token", cpu[name], "ms", 3) for name in names}
    out["ratio"] = {}
    for name in names[1:]:
        out["ratio"][name] = report.line(f"{name} / raw", report.ratios(speed[name], speed["raw"]), "", 3)
        best = max(speed[name]) / max(speed["raw"])
        out["ratio"][f"{name}_best"] = best
        print(f"  {name} / raw, best round of each: {best:.3f}")
    if peer is not None:
        out["ratio"]["generate_peer"] = report.line(
            "generate / llama-cpp-python", report.ratios(speed["generate"], speed["peer"]), "", 3
        )
        peer.close()
    raw.close()
    llm.close()
    out["peak_rss_mib"] = {}
    for side in ("raw", "generate", "default"):
        command = [
            sys.executable,
            __file__,
            "--child",
            side,
            "-m",
            a.model,
            "-t",
            str(a.threads),
            "--tokens",
            str(a.tokens),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        out["peak_rss_mib"][side] = float(done.stdout)
    print("  peak RSS: " + ", ".join(f"{k} {v:.0f} MiB" for k, v in out["peak_rss_mib"].items()))
    print(f"  (raw and generate: one sequence of {N_CTX} tokens; default: Llama(model) with its default settings)")
    report.write(out, a.json)


def child(side: str, reference: str, threads: int, params: SamplingParams) -> None:
    """One run of one side in this process."""
    if side == "raw":
        model = Model.load(resolve(reference))
        raw = RawLoop(model, n_ctx=N_CTX, n_parallel=1, n_threads=threads)
        raw.run_one([int(t) for t in model.vocab.tokenize(PROMPT)], params.max_tokens or 1, params)
    elif side == "generate":
        Llama(reference, n_ctx=N_CTX, n_parallel=1, n_threads=threads).generate(PROMPT, params)
    else:
        Llama(reference).generate(PROMPT, params)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
