"""On a GPU: one stream, many sequences, switches, memory, several GPUs; beside llama-bench of the same bundle and run.

    LLCUDA_FFI_BUNDLE=FOLDER python bench/gpu.py -m MODEL.gguf [--llama-bench FILE] [--batched-bench FILE] [--json FILE]

--llama-bench takes the output of `llama-bench -o json`, --batched-bench that of `llama-batched-bench --output-format
jsonl`. Each section is one process of its own (--section NAME), because a switch is read once per process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import report

from llcuda_ffi import Batch, Context, Llama, ModelParams
from llcuda_ffi.bundles import select
from llcuda_ffi.devices import placement
from llcuda_ffi.errors import LlcudaError
from llcuda_ffi.hardware.gpu import survey
from llcuda_ffi.native import cuda

STORY = "Once upon a time there was a small dragon who"
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 1}
PLAIN = {"ignore_eos": True, "prefix_cache": False}
MIB = 1 << 20


def vram() -> list[int]:
    """Bytes in use on each GPU."""
    return [gpu.memory_total - gpu.memory_free for gpu in survey().gpus]


def opened(a: argparse.Namespace, **settings: Any) -> Llama:
    base: dict[str, Any] = {"device": "cuda", "flash_attn": True, "n_ctx": 512, "n_parallel": 1}
    return Llama(a.model, **{**base, **settings})


def rate(run: Callable[[], int], rounds: int) -> list[float]:
    """Tokens per second of each round after a warm-up."""
    rates = []
    for i in range(rounds + 1):
        began = perf_counter()
        n = run()
        if i:
            rates.append(n / (perf_counter() - began))
    return rates


# --- sections: each returns a JSON object ---


def verdicts(a: argparse.Namespace) -> dict[str, Any]:
    """What every known bundle would do on this machine; nothing is loaded."""
    found = survey()
    # with all runtime libraries assumed, so that the code alone speaks
    table = select.judge_all(found, select.cuda_pins(), glibc=(99,), runtimes=(12, 13))
    for verdict in table:
        print(f"  {verdict}")
    return {
        "gpus": [{"name": g.name, "sm": g.arch, "memory": g.memory_total, "pci": g.pci} for g in found.gpus],
        "driver": found.driver,
        "cuda": found.cuda,
        "verdicts": [{"gpu": v.gpu.index, "bundle": v.bundle, "how": v.how, "why": v.why} for v in table],
    }


def stream(a: argparse.Namespace) -> dict[str, Any]:
    """One stream of 256 tokens, prompt of ten tokens included: greedy whole, greedy streamed, sampled."""
    out: dict[str, Any] = {}
    with opened(a) as llm:
        out["machine"] = report.machine(llm.model.library)
        out["placement"] = str(llm.model.placement)
        decode: list[float] = []

        def whole(**more: Any) -> int:
            done = llm.generate(STORY, max_tokens=256, **PLAIN, **more)
            decode.append(done.timings.tokens_per_s)
            return done.usage.completion_tokens

        def streamed() -> int:
            n = 0
            for chunk in llm.stream(STORY, max_tokens=256, temperature=0, **PLAIN):
                if chunk.completion is not None:
                    n = chunk.completion.usage.completion_tokens
            return n

        sides: dict[str, Callable[[], int]] = {
            "greedy": lambda: whole(temperature=0),
            "streamed": streamed,
            "sampled": lambda: whole(**SAMPLED),
        }
        for name, run in sides.items():
            decode.clear()
            out[name] = report.line(name, rate(run, a.rounds), "tok/s")
            if decode:
                out[f"{name}_decode_only"] = report.line(f"{name}, without the prompt", decode[1:], "tok/s")
    try:
        with opened(a, backend_sampling=True) as llm:
            out["sampled_backend"] = report.line(
                "sampled on the GPU", rate(lambda: whole(**SAMPLED), a.rounds), "tok/s"
            )
    except LlcudaError as error:
        out["sampled_backend_error"] = f"{type(error).__name__}: {error}"
        print(f"  sampled on the GPU: {out['sampled_backend_error'][:300]}")
    return out


def many(a: argparse.Namespace) -> dict[str, Any]:
    """32, 64 and 128 sequences, sampled, prompts and answers of 128 tokens: as llama-batched-bench counts them."""
    out: dict[str, Any] = {}
    for n in (32, 64, 128):
        for n_contexts in (1, 2):
            for backend in (False, "rows"):
                key = f"{n}{'_rows' if backend else ''}{f'_contexts_{n_contexts}' if n_contexts > 1 else ''}"
                try:
                    out[key] = together(a, n, n_contexts, backend)
                except LlcudaError as error:
                    out[f"{key}_error"] = f"{type(error).__name__}: {error}"
                    print(f"  {n} sequences: {error!s:.300}")
    return out


def together(a: argparse.Namespace, n: int, n_contexts: int, backend: bool | str) -> dict[str, Any]:
    """Rates of `n` sequences: prompts, generation, and both together."""
    label = f"{n} sequences in {n_contexts}{', reduced rows' if backend else ''}"
    settings: dict[str, Any] = {"n_contexts": n_contexts, "backend_sampling": backend}
    before = sum(vram())
    with opened(a, n_ctx=256, n_parallel=n, n_batch=2048, n_ubatch=512, **settings) as llm:
        prompts = [[1000 + (i * 131 + k * 17) % 50000 for k in range(128)] for i in range(n)]
        prompt_rates, rates, both_rates = [], [], []
        for round_ in range(a.rounds + 1):
            began = perf_counter()
            llm.generate(prompts, max_tokens=1, **PLAIN, **SAMPLED)
            first = perf_counter() - began
            began = perf_counter()
            llm.generate(prompts, max_tokens=128, **PLAIN, **SAMPLED)
            both = perf_counter() - began
            if round_:
                prompt_rates.append(n * 128 / first)
                rates.append(n * 127 / (both - first))
                both_rates.append(n * 256 / both)
        used = (sum(vram()) - before) / MIB
    return {
        "vram_mib": used,
        "prompt": report.line(f"{label}: prompt", prompt_rates, "tok/s"),
        "generation": report.line(f"{label}: generation", rates, "tok/s"),
        "both": report.line(f"{label}: both together", both_rates, "tok/s"),
    }


def one_setting(a: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second and memory with the settings of --setting."""
    setting: dict[str, Any] = json.loads(a.setting)
    cuda.configure(graphs=setting.get("graphs"))
    before = sum(vram())
    with opened(a, flash_attn=setting.get("flash", True), kv_type=setting.get("kv", "f16"), n_ctx=4096) as llm:
        rates = rate(
            lambda: llm.generate(STORY, max_tokens=256, temperature=0, **PLAIN).usage.completion_tokens, a.rounds
        )
        used = sum(vram()) - before
        found = {**setting, "switches": cuda.in_force().graphs, "vram_mib": used / MIB}
        found["tokens_per_s"] = report.line(f"{a.setting}, {used / MIB:.0f} MiB", rates, "tok/s")
    return found


def memory(a: argparse.Namespace) -> dict[str, Any]:
    """Load, generate, close, 20 times; two models at once; a context and a model too large."""
    out: dict[str, Any] = {}
    used = []
    for _ in range(21):
        with opened(a, n_ctx=2048) as llm:
            llm.generate(STORY, max_tokens=8, **PLAIN)
            inside = sum(vram())
        used.append(sum(vram()))
    out["vram_mib"] = {"loaded": inside / MIB, "after_first": used[0] / MIB, "after_last": used[-1] / MIB}
    print(f"  closed 21 times: {used[0] / MIB:.0f} MiB after the first, {used[-1] / MIB:.0f} MiB after the last")
    with opened(a) as one, opened(a) as two:
        same = [llm.generate(STORY, max_tokens=32, temperature=0, **PLAIN).token_ids for llm in (one, two)]
        out["two_models_agree"] = same[0] == same[1]
        free = placement.gpus(one.model.library, "cuda")[0].memory_free
        layers, head = one.model.n_layer, one.model.n_embd // one.model.n_head * one.model.n_head_kv
        cells = int(free * 1.5 / (layers * head * 4)) // 256 * 256
        try:
            Llama(one.model, n_ctx=max(256, cells // 64), n_parallel=64, flash_attn=True)
            out["too_large_context"] = "was made"
        except LlcudaError as error:
            out["too_large_context"] = f"{type(error).__name__}: {error}"
        out["alive_after"] = bool(one.generate(STORY, max_tokens=2, **PLAIN).token_ids)
    print(f"  two models agree: {out['two_models_agree']}; too large: {out['too_large_context'][:300]}")
    if a.large:
        # fill the GPU with a KV cache, then load a model that no longer fits
        library = placement.library_for("cuda")
        free = placement.gpus(library, "cuda")[0].memory_free
        with opened(a) as llm:
            cells = int((free - 3 * 1024 * MIB) / (layers * head * 4)) // (64 * 256) * 256
            with Llama(llm.model, n_ctx=cells, n_parallel=64, flash_attn=True):
                out["free_mib_when_full"] = placement.gpus(library, "cuda")[0].memory_free / MIB
                for layers_asked in (-1, "auto"):
                    try:
                        with Llama(a.large, device="cuda", n_gpu_layers=layers_asked, n_ctx=512, n_parallel=1) as big:
                            out[f"too_large_model_{layers_asked}"] = str(big.model.placement)
                    except LlcudaError as error:
                        out[f"too_large_model_{layers_asked}"] = f"{type(error).__name__}: {error}"
                    print(f"  too large, n_gpu_layers={layers_asked}: {out[f'too_large_model_{layers_asked}'][:300]}")
    return out


def first_logits(llm: Llama, flash: bool) -> np.ndarray:
    """The logits after the prompt."""
    tokens = llm.model.vocab.tokenize(STORY)
    batch = Batch(len(tokens))
    batch.extend(tokens)
    with Context(llm.model, n_ctx=256, flash_attn_type="ENABLED" if flash else "DISABLED") as context:
        context.decode(batch)
        return context.logits()


def split(a: argparse.Namespace) -> dict[str, Any]:
    """One GPU, then all of them by layer, row and tensor: tokens, logits, tokens/s, memory on each."""
    out: dict[str, Any] = {}
    alone: list[int] = []
    logits: np.ndarray | None = None
    # the first one again without flash attention: a yardstick for how far another order of sums may lead
    for mode in ("NONE", "LAYER", "ROW", "TENSOR", "NONE, no flash attention"):
        before = vram()
        params = ModelParams(split_mode=mode.split(",")[0])  # type: ignore[arg-type]
        flash = "no flash" not in mode
        try:
            device = "cuda:0" if mode.startswith("NONE") else "cuda"
            with opened(a, device=device, model_params=params, flash_attn=flash) as llm:
                tokens = list(llm.generate(STORY, max_tokens=128, temperature=0, **PLAIN).token_ids)
                alone = alone or tokens
                mine = first_logits(llm, flash)
                logits = mine if logits is None else logits
                off = float(np.abs(mine - logits).max() / logits.std())
                together = float(np.corrcoef(mine, logits)[0, 1])
                n = next((i for i, (x, y) in enumerate(zip(tokens, alone, strict=False)) if x != y), len(tokens))
                rates = rate(
                    lambda llm=llm: llm.generate(STORY, max_tokens=128, temperature=0, **PLAIN).usage.completion_tokens,
                    a.rounds,
                )
                each = [(now - then) / MIB for now, then in zip(vram(), before, strict=True)]
                out[mode] = {
                    "same_tokens": n,
                    "of": len(tokens),
                    "logits_correlation": together,
                    "logits_most_off_in_deviations": off,
                    "vram_mib": each,
                    "placement": str(llm.model.placement),
                }
                print(f"  {mode}: logits correlate {together:.6f}, at most {off:.4f} standard deviations off")
                label = f"{mode}: {n} of {len(tokens)} tokens as on one, MiB {[round(x) for x in each]}"
                out[mode]["tokens_per_s"] = report.line(label, rates, "tok/s")
        except LlcudaError as error:
            out[mode] = {"error": f"{type(error).__name__}: {error}"}
            print(f"  {mode}: {out[mode]['error'][:300]}")
    return out


SECTIONS = {
    "verdicts": verdicts,
    "stream": stream,
    "many": many,
    "setting": one_setting,
    "memory": memory,
    "split": split,
}
TABLE: list[dict[str, Any]] = [
    {"flash": True, "graphs": True, "kv": "f16"},
    {"flash": False, "graphs": True, "kv": "f16"},
    {"flash": True, "graphs": False, "kv": "f16"},
    {"flash": True, "graphs": True, "kv": "q8_0"},
]


def main() -> None:
    p = report.parser(__doc__, rounds=5)
    p.add_argument("--section", choices=SECTIONS, help="run one section and print its JSON as the last line")
    p.add_argument("--setting", default="{}", help=argparse.SUPPRESS)
    p.add_argument("--only", help="comma-separated sections (default: all; split where there are two GPUs)")
    p.add_argument("--large", help="a model that shall not fit beside a full KV cache")
    p.add_argument("--llama-bench", type=Path, metavar="FILE")
    p.add_argument("--batched-bench", type=Path, metavar="FILE")
    a = p.parse_args()
    if a.section:
        print(json.dumps(SECTIONS[a.section](a)))
        return
    wanted = a.only.split(",") if a.only else [n for n in SECTIONS if n != "split" or len(survey().gpus) > 1]
    machine = report.host() | {"gpus": [gpu.name for gpu in survey().gpus]}
    out: dict[str, Any] = {"benchmark": "gpu", "command": report.command(), "machine": machine}
    out["model"] = Path(a.model).name
    for name in wanted:
        if name == "setting":
            out["settings"] = [child(a, name, json.dumps(row)) for row in TABLE]
        else:
            out[name] = child(a, name)
    compare(out, a)
    report.write(out, a.json)


def child(a: argparse.Namespace, section: str, setting: str = "{}") -> dict[str, Any]:
    """Run a section in a fresh process; its report goes through, its last line is the result."""
    print(f"{section} {setting if setting != '{}' else ''}", flush=True)
    command = [sys.executable, __file__, "-m", str(a.model), "-r", str(a.rounds), "--section", section]
    command += ["--setting", setting, *(["--large", a.large] if a.large else [])]
    try:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        print("  took more than 240 s", flush=True)
        return {"error": "took more than 240 s"}
    lines = done.stdout.rstrip().splitlines()
    if done.returncode or not lines:
        print("\n".join(lines), flush=True)
        return {"error": f"exit status {done.returncode}"}
    print("\n".join(lines[:-1]), flush=True)
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def compare(out: dict[str, Any], a: argparse.Namespace) -> None:
    """Ratios to llama.cpp's own programs, where their output is given."""
    ratios: dict[str, float] = {}
    if a.llama_bench and "greedy" in out.get("stream", {}):
        rows = json.loads(a.llama_bench.read_text())
        tg = {
            row["n_gen"]: row["avg_ts"]
            for row in rows
            if row["n_gen"] and not row["n_prompt"] and row["flash_attn"] != 0
        }
        out["llama_bench"] = tg
        for name in ("greedy", "streamed", "sampled", "sampled_backend"):
            if name not in out["stream"]:
                continue
            ratios[f"{name} / llama-bench tg128"] = out["stream"][name]["median"] / tg[128]
        for name in ("greedy", "sampled"):
            decode = out["stream"][f"{name}_decode_only"]["median"]
            ratios[f"{name}, without the prompt / llama-bench tg128"] = decode / tg[128]
    if a.batched_bench and "32" in out.get("many", {}):
        lines = [json.loads(line) for line in a.batched_bench.read_text().splitlines() if line.startswith("{")]
        theirs = {row["pl"]: (row["speed_pp"], row["speed_tg"], row["speed"]) for row in lines}
        out["batched_bench"] = theirs
        for key, ours in out["many"].items():
            n = int(key.partition("_")[0])
            if key.endswith("error") or n not in theirs:
                continue
            pp, tg_rate, both = theirs[n]
            ratios[f"{key} sequences, prompt"] = ours["prompt"]["median"] / pp
            ratios[f"{key} sequences, generation"] = ours["generation"]["median"] / tg_rate
            ratios[f"{key} sequences, both together"] = ours["both"]["median"] / both
    for name, value in ratios.items():
        print(f"  {name:<60} {value:.3f}")
    out["ratios"] = ratios


if __name__ == "__main__":
    main()
