"""Counters of the scheduler."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from time import perf_counter

from ..html_view import table
from .request import Request

_WINDOW = 1024


@dataclass(frozen=True)
class Percentiles:
    """Of the last 1,024 requests; 0.0 when there were none."""

    p50: float
    p95: float
    p99: float
    mean: float

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name):.4g}" for field in fields(self))


@dataclass(frozen=True)
class MetricsSnapshot:
    """What `Llama.metrics()` returns.

    Attributes:
        queued, running: requests waiting and in a slot.
        requests: finished ones; `cancelled` of them; `failed` ended with an exception.
        prompt_tokens, cached_tokens, completion_tokens: totals over finished requests.
        batches, batch_tokens, busy_s: decodes, tokens in them, seconds in them.
        drafted, accepted: tokens of speculative decoding.
        ttft_s, itl_s, tokens_per_s: time to first token, time between tokens, decode rate of a request.
        kv_used, kv_cells: tokens held in the KV cache, and its size.
        n_threads: CPU threads in use.
        uptime_s: since the scheduler was made.
        failure: what stopped the engine, None while it is sound.
        reused: tokens that were not computed when a request got its slot, by where they came from: "kv" (another
            sequence of the KV cache), "checkpoint", "host", "disk".
        checkpoint_bytes, host_cache_bytes: ordinary memory that checkpoints and the host tier take.
    """

    queued: int
    running: int
    requests: int
    cancelled: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    batches: int
    batch_tokens: int
    busy_s: float
    drafted: int
    accepted: int
    ttft_s: Percentiles
    itl_s: Percentiles
    tokens_per_s: Percentiles
    kv_used: int
    kv_cells: int
    n_threads: int
    uptime_s: float
    failure: str | None = None
    reused: Mapping[str, int] = field(default_factory=dict)
    checkpoint_bytes: int = 0
    host_cache_bytes: int = 0

    def _repr_html_(self) -> str:
        return table((field.name, getattr(self, field.name)) for field in fields(self))

    @property
    def hit_ratio(self) -> float:
        """The share of the finished requests' prompt tokens that was not computed."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Metrics:
    """Counters that the scheduler moves; each update is a few additions."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.requests = self.cancelled = self.failures = 0
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self.batches = self.batch_tokens = self.drafted = self.accepted = 0
        self.busy_s = 0.0
        self.ttft: deque[float] = deque(maxlen=_WINDOW)
        self.itl: deque[float] = deque(maxlen=_WINDOW)
        self.rate: deque[float] = deque(maxlen=_WINDOW)

    def batch(self, n_tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self.batches += 1
        self.batch_tokens += n_tokens
        self.busy_s += seconds

    def finished(self, request: Request) -> None:
        """A request has its completion."""
        completion = request.completion
        assert completion is not None
        self.requests += 1
        self.cancelled += completion.finish_reason == "cancelled"
        usage, timings = completion.usage, completion.timings
        made = usage.completion_tokens - request.progress.begun
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += made
        self.drafted += timings.drafted
        self.accepted += timings.accepted
        if made:
            self.ttft.append(timings.ttft_s)
        if made > 1:
            self.itl.append(timings.decode_s / (made - 1))
            self.rate.append(timings.tokens_per_s)

    def failed(self) -> None:
        """A request ended with an exception."""
        self.failures += 1

    @classmethod
    def merged(cls, parts: Sequence[Metrics]) -> Metrics:
        """The counters of several schedulers together."""
        whole = cls()
        whole.began = min(part.began for part in parts)
        for name, value in vars(whole).items():
            if isinstance(value, deque):
                setattr(whole, name, deque(x for part in parts for x in getattr(part, name).copy()))
            elif name != "began":
                setattr(whole, name, sum(getattr(part, name) for part in parts))
        return whole

    def snapshot(
        self, *, queued: int, running: int, kv_used: int, kv_cells: int, n_threads: int, failure: str | None
    ) -> MetricsSnapshot:
        """The counters now, with what only the scheduler's owner knows."""
        return MetricsSnapshot(
            queued=queued,
            running=running,
            requests=self.requests,
            cancelled=self.cancelled,
            failed=self.failures,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            batches=self.batches,
            batch_tokens=self.batch_tokens,
            busy_s=self.busy_s,
            drafted=self.drafted,
            accepted=self.accepted,
            ttft_s=percentiles(self.ttft),
            itl_s=percentiles(self.itl),
            tokens_per_s=percentiles(self.rate),
            kv_used=kv_used,
            kv_cells=kv_cells,
            n_threads=n_threads,
            uptime_s=perf_counter() - self.began,
            failure=failure,
        )


def percentiles(values: Sequence[float]) -> Percentiles:
    """The percentiles of some values."""
    if not values:
        return Percentiles(0.0, 0.0, 0.0, 0.0)
    ordered = sorted(values)
    p50, p95, p99 = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95, 0.99))
    return Percentiles(p50, p95, p99, sum(ordered) / len(ordered))
