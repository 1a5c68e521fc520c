"""GET /metrics in Prometheus' text format: the engine's counters, and the names of the model server protocol.

The latter (vllm:…) are what llm-d, KServe and the gateway's inference extension read to choose a replica.
"""

from __future__ import annotations

from ..async_llama import AsyncLlama
from ..engine.metrics import MetricsSnapshot, Percentiles
from .request_metrics import ModelMetrics
from .served_model import ServedModel
from .state import ServerState

_GAUGES = {
    "queued": "requests waiting for a slot",
    "running": "requests in a slot",
    "kv_used": "tokens held in the KV cache",
    "kv_cells": "tokens that the KV cache holds",
    "hit_ratio": "share of the finished requests' prompt tokens that was not computed",
    "checkpoint_bytes": "memory that checkpoints take",
    "host_cache_bytes": "memory that the host tier takes",
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
_QUANTILES = ("0.5", "0.95", "0.99")


class Exposition:
    """Lines of the format; HELP and TYPE stand once before a name's samples."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, about: str, value: float, labels: str = "") -> None:
        """A sample of a gauge or counter."""
        self.family(name, kind, about).append(f"{name}{{{labels}}} {value!r}" if labels else f"{name} {value!r}")

    def family(self, name: str, kind: str, about: str) -> list[str]:
        """The samples of a name, to be added to."""
        return self._families.setdefault(name, [f"# HELP {name} {about}", f"# TYPE {name} {kind}"])

    def text(self) -> str:
        """The whole."""
        return "\n".join(line for lines in self._families.values() for line in lines) + "\n"


def metrics_text(state: ServerState) -> str:
    """The exposition. The engine's counters are of the first text model that is loaded, the vllm: ones of every one."""
    out, gate = Exposition(), state.gate
    out.add("llcuda_ffi_http_inside", "gauge", "completions and embedding requests running or waiting", gate.inside)
    out.add("llcuda_ffi_http_refused_total", "counter", "requests refused because too many were waiting", gate.refused)
    loaded = [(m, m.engine.metrics()) for m in state.models if isinstance(m.engine, AsyncLlama)]
    for model, snapshot in loaded[:1]:
        _engine(out, snapshot)
        _llamacpp(out, snapshot, state.metrics.of(model.name))
    for model, snapshot in loaded:
        _protocol_gauges(out, model, snapshot)
    for name, measured in state.metrics.models.items():
        _protocol_requests(out, _label(name), measured)
    return out.text()


def _engine(out: Exposition, snapshot: MetricsSnapshot) -> None:
    for name, about in _GAUGES.items():
        out.add(f"llcuda_ffi_{_unit(name)}", "gauge", about, getattr(snapshot, name))
    for name, about in _COUNTERS.items():
        out.add(f"llcuda_ffi_{_unit(name)}_total", "counter", about, getattr(snapshot, name))
    for tier, n in snapshot.reused.items():
        about = "prompt tokens that were not computed, by where they came from"
        out.add("llcuda_ffi_reused_tokens_total", "counter", about, n, f'tier="{tier}"')
    for name, about in _SUMMARIES.items():
        found: Percentiles = getattr(snapshot, name)
        for q in _QUANTILES:
            value = getattr(found, "p" + q[2:].ljust(2, "0"))
            out.add(f"llcuda_ffi_{_unit(name)}", "gauge", f"{about}, last 1,024 requests", value, f'quantile="{q}"')


def _llamacpp(out: Exposition, snapshot: MetricsSnapshot, measured: ModelMetrics) -> None:
    """llama.cpp's names, for dashboards that were made for its server."""
    computed = snapshot.prompt_tokens - snapshot.cached_tokens
    prompt_s = measured.histograms["request_prefill_time_seconds"].sum
    decode_s = measured.histograms["request_decode_time_seconds"].sum
    counters: tuple[tuple[str, float], ...] = (
        ("prompt_tokens_total", computed),
        ("prompt_tokens_cached_total", snapshot.cached_tokens),
        ("prompt_seconds_total", prompt_s),
        ("tokens_predicted_total", snapshot.completion_tokens),
        ("tokens_predicted_seconds_total", decode_s),
        ("n_decode_total", snapshot.batches),
        ("spec_decode_num_draft_tokens_total", snapshot.drafted),
        ("spec_decode_num_accepted_tokens_total", snapshot.accepted),
    )
    for name, value in counters:
        out.add(f"llamacpp:{name}", "counter", name.replace("_", " "), value)
    gauges: tuple[tuple[str, float], ...] = (
        ("prompt_tokens_seconds", computed / prompt_s if prompt_s else 0.0),
        ("predicted_tokens_seconds", snapshot.completion_tokens / decode_s if decode_s else 0.0),
        ("requests_processing", snapshot.running),
        ("requests_deferred", snapshot.queued),
        ("kv_cache_tokens", snapshot.kv_used),
    )
    for name, value in gauges:
        out.add(f"llamacpp:{name}", "gauge", name.replace("_", " "), value)


def _protocol_gauges(out: Exposition, model: ServedModel, snapshot: MetricsSnapshot) -> None:
    label = _label(model.name)
    out.add("vllm:num_requests_running", "gauge", "requests in a slot", snapshot.running, label)
    out.add("vllm:num_requests_waiting", "gauge", "requests waiting for a slot", snapshot.queued, label)
    used = snapshot.kv_used / snapshot.kv_cells if snapshot.kv_cells else 0.0
    out.add("vllm:kv_cache_usage_perc", "gauge", "share of the KV cache that is used, 0 to 1", used, label)
    info = f'block_size="1",num_gpu_blocks="{snapshot.kv_cells}"'
    out.add("vllm:cache_config_info", "gauge", "size of the KV cache", 1, f"{label},{info}")
    names, busy = ",".join(model.adapters), ",".join(model.loras)
    lora = f'max_lora="{len(model.adapters)}",running_lora_adapters="{_escaped(busy)}",waiting_lora_adapters=""'
    if names:
        out.add("vllm:lora_requests_info", "gauge", "adapters that are loaded", model.created, lora)


def _protocol_requests(out: Exposition, label: str, measured: ModelMetrics) -> None:
    for name, count in (
        ("prompt_tokens", measured.prompt_tokens),
        ("generation_tokens", measured.generation_tokens),
        ("prefix_cache_queries", measured.prompt_tokens),
        ("prefix_cache_hits", measured.cached_tokens),
    ):
        out.add(f"vllm:{name}_total", "counter", f"{name.replace('_', ' ')} of finished requests", count, label)
    for reason, count in measured.finished.items():
        labels = f'{label},finished_reason="{reason}"'
        out.add("vllm:request_success_total", "counter", "finished requests by their end", count, labels)
    for name, histogram in measured.histograms.items():
        out.family(f"vllm:{name}", "histogram", histogram.about).extend(histogram.lines(f"vllm:{name}", label))


def _label(name: str) -> str:
    return f'model_name="{_escaped(name)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unit(name: str) -> str:
    if name == "tokens_per_s":
        return "tokens_per_second"
    return name[:-2] + "_seconds" if name.endswith("_s") else name
