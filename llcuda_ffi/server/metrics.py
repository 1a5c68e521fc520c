"""GET /metrics: the engine's counters in Prometheus' text format."""

from __future__ import annotations

from ..engine.metrics import MetricsSnapshot, Percentiles
from .gate import Gate

_GAUGES = {
    "queued": "requests waiting for a slot",
    "running": "requests in a slot",
    "kv_used": "tokens held in the KV cache",
    "kv_cells": "tokens that the KV cache holds",
    "n_threads": "CPU threads in use",
    "uptime_s": "seconds since the model was loaded",
}
_COUNTERS = {
    "requests": "finished requests",
    "cancelled": "of these, cancelled ones",
    "failed": "requests that ended with an exception",
    "prompt_tokens": "prompt tokens of finished requests",
    "cached_tokens": "of these, not computed again",
    "completion_tokens": "generated tokens of finished requests",
    "batches": "batches computed",
    "batch_tokens": "tokens in them",
    "busy_s": "seconds in them",
    "drafted": "tokens drafted",
    "accepted": "of these, kept",
}
_SUMMARIES = {
    "ttft_s": "seconds to the first token",
    "itl_s": "seconds between tokens",
    "tokens_per_s": "tokens a second of one request",
}


def metrics_text(snapshot: MetricsSnapshot | None, gate: Gate) -> str:
    """The exposition; the quantiles are of the last 1,024 requests."""
    lines: list[str] = []

    def write(name: str, kind: str, about: str, value: float) -> None:
        lines.extend((f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {value!r}"))

    write("llcuda_ffi_http_inside", "gauge", "completions and embedding requests running or waiting", gate.inside)
    write("llcuda_ffi_http_refused_total", "counter", "requests refused because too many were waiting", gate.refused)
    if snapshot is not None:
        for name, about in _GAUGES.items():
            write(f"llcuda_ffi_{_unit(name)}", "gauge", about, getattr(snapshot, name))
        for name, about in _COUNTERS.items():
            write(f"llcuda_ffi_{_unit(name)}_total", "counter", about, getattr(snapshot, name))
        for name, about in _SUMMARIES.items():
            found: Percentiles = getattr(snapshot, name)
            full = f"llcuda_ffi_{_unit(name)}"
            lines.extend((f"# HELP {full} {about}", f"# TYPE {full} gauge"))
            lines.extend(f'{full}{{quantile="{q}"}} {getattr(found, "p" + q[2:].ljust(2, "0"))!r}' for q in _QUANTILES)
    return "\n".join(lines) + "\n"


_QUANTILES = ("0.5", "0.95", "0.99")


def _unit(name: str) -> str:
    if name == "tokens_per_s":
        return "tokens_per_second"
    return name[:-2] + "_seconds" if name.endswith("_s") else name
