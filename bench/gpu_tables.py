"""The tables of docs/ that were measured on GPUs, made from bench/results by bench/pages.py."""

from __future__ import annotations

from typing import Any

from .measured import result_of, rows_of

_SIDES = {
    "greedy": "greedy, prompt included",
    "streamed": "streamed",
    "sampled": "sampled (top-k 40, top-p, min-p, temperature)",
    "sampled_backend": "sampled on the GPU (`backend_sampling=True`)",
}
_MODES = {
    "NONE": "one GPU", "LAYER": "by layer", "TENSOR": "by tensor",
    "NONE, no flash attention": "one GPU without flash attention",
}  # fmt: skip


def where(result: dict[str, Any]) -> str:
    """The date and the GPUs."""
    machine = result["machine"]
    names = machine["gpus"]
    return f"{machine['date']}, {len(names)} {names[0].removesuffix(' 80GB HBM3')}"


def stream() -> list[str]:
    """One stream beside llama-bench."""
    result = result_of("h100/stream")
    rows = [
        [words, f"{result['stream'][side]['median']:.0f}", f"{result['ratios'][f'{side} / llama-bench tg128']:.2f}"]
        for side, words in _SIDES.items()
    ]
    bench = f"of llama-bench tg128 ({result['llama_bench']['128']:.0f})"
    return [f"{where(result)}:", "", *rows_of(["one stream, 256 tokens", "tok/s", bench], rows)]


def switches() -> list[str]:
    """What libllama's switches do."""
    result = result_of("h100/setting")
    rows = []
    for row in result["settings"]:
        words = [
            "flash attention" if row["flash"] else "no flash attention",
            "CUDA graphs" if row["graphs"] else "no CUDA graphs",
            f"KV {row['kv']}",
        ]
        rows.append([", ".join(words), f"{row['tokens_per_s']['median']:.0f}", f"{row['vram_mib']:,.0f}"])
    return [f"{where(result)}:", "", *rows_of(["switches", "tok/s", "MiB on the GPU"], rows)]


def split() -> list[str]:
    """A model on several GPUs."""
    rows = []
    for name, size in (("h200/gpu-multi", "1B"), ("h200/gpu-multi-8b", "8B")):
        result = result_of(name)
        for mode, words in _MODES.items():
            found = result["split"][mode]
            each = ", ".join(f"{mib:,.0f}" for mib in found["vram_mib"])
            same = f"{found['same_tokens']} of {found['of']}"
            rate = f"{found['tokens_per_s']['median']:.0f}"
            rows.append([f"{size}, {words}", rate, each, same, f"{found['logits_correlation']:.4f}"])
    titles = ["model, split", "tok/s", "MiB on each", "tokens as on one GPU", "logits' correlation with one GPU's"]
    return [f"{where(result)}:", "", *rows_of(titles, rows)]


def many() -> list[str]:
    """Many sequences beside llama-batched-bench."""
    result = result_of("h100/many")
    rows = []
    for n, theirs in result["batched_bench"].items():
        sides = [f"{n}{side}" for side in ("", "_rows", "_contexts_2", "_rows_contexts_2")]
        rates = [f"{result['many'][side]['both']['median']:,.0f}" for side in sides]
        ratio = f"{result['ratios'][f'{sides[-1]} sequences, both together']:.2f}"
        rows.append([n, f"{theirs[2]:,.0f}", *rates[:-1], f"{rates[-1]} ({ratio})"])
    titles = ["sequences", "llama-batched-bench (samples nothing)", "one context, whole rows", "one context, reduced"]
    return [f"{where(result)}:", "", *rows_of([*titles, "two, whole rows", 'two, reduced ("auto")'], rows)]


def load() -> list[str]:
    """Ragged load, and clients over HTTP."""
    result, http = result_of("h100/load"), result_of("h100/serving")
    over = http["clients"]["64"]["http"]
    first = ("64 clients over HTTP, prompts and answers of 128", over["tokens_per_s"], over)
    rows = [first, *((name, row["with_prompts_per_s"], row) for name, row in result["load"].items())]
    cells = (
        [name, f"{rate:,.0f}", *(f"{row[f'ttft_{p}_ms']:.0f}" for p in ("p50", "p99"))] for name, rate, row in rows
    )
    titles = ["load", "tokens/s, prompts counted", "TTFT p50, ms", "TTFT p99, ms"]
    return [f"{where(result)}:", "", *rows_of(titles, cells)]


def cluster() -> list[str]:
    """Ray Serve beside servers without it."""
    rows = []
    for name, what in (
        ("scaling_gpu", "1B shape, Q4_K_M, a GPU and 64 slots each"),
        ("cluster_cpu", "0.2B shape on 4 CPU threads and 8 slots each"),
    ):
        result = result_of(f"h200x2/{name}")
        for n, row in result["ratios"].items():
            rates = [f"{row['tokens_per_s']:,.0f}", f"{row['of_linear']:.2f}"]
            rates += [f"{row['without_ray']:,.0f}", f"{row['of_linear_without_ray']:.2f}"]
            rows.append([what, n, *rates])
    titles = ["model", "replicas", "tokens/s", "of linear", "as many `llcuda-ffi serve`, no Ray", "of linear"]
    return [_cluster_machine("scaling_gpu"), "", *rows_of(titles, rows)]


def ends() -> list[str]:
    """The same clusters when a replica is killed, when they grow, and what conversations find cached."""
    rows = []
    for name in ("cluster_gpu", "cluster_cpu"):
        result = result_of(f"h200x2/{name}")
        kill, grown, n = result["kill"], result["autoscale"], max(result["ratios"], key=int)
        rows.append([
            f"{n} replicas, {result['settings']['device']}", f"{kill['lost']} of {kill['requests']}",
            f"{kill['replaced_s']:.1f} s", f"{grown['seconds']:.1f} s", f"{result['ratios'][n]['cached']:.0%}",
        ])  # fmt: skip
    titles = ["cluster", "answers lost with a killed replica", "a new one after", "from one to all under load"]
    return [_cluster_machine("cluster_gpu"), "", *rows_of([*titles, "cached share of later turns' prompts"], rows)]


def _cluster_machine(name: str) -> str:
    machine = result_of(f"h200x2/{name}")["machine"]
    return f"{machine['date']}, 2 NVIDIA H200, {machine['cores']} cores:"
