"""Histograms of finished requests in Prometheus' form, under the names that vLLM gave them and routers read."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from ..engine.results import Timings, Usage

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_TOKENS = tuple(float(n * 10**power) for power in range(6) for n in (1, 2, 5))


class Histogram:
    """Counts of values up to each bound.

    Attributes:
        sum: of all values.
    """

    def __init__(self, about: str, bounds: Sequence[float]) -> None:
        self.about, self._bounds = about, bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """The exposition, without HELP and TYPE."""
        seen = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            seen += count
            le = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{name}_bucket{{{labels},le="{le}"}} {seen}'
        yield f"{name}_sum{{{labels}}} {self.sum!r}"
        yield f"{name}_count{{{labels}}} {seen}"


class ModelMetrics:
    """What was measured of one model's requests."""

    def __init__(self) -> None:
        self.histograms = {
            "time_to_first_token_seconds": Histogram("from the request to its first token", _SECONDS),
            "inter_token_latency_seconds": Histogram("between tokens of a request (its mean)", _GAPS),
            "time_per_output_token_seconds": Histogram("the same under its older name", _GAPS),
            "e2e_request_latency_seconds": Histogram("from the request to its last token", _SECONDS),
            "request_queue_time_seconds": Histogram("waiting for a slot", _SECONDS),
            "request_prefill_time_seconds": Histogram("from the slot to the first token", _SECONDS),
            "request_decode_time_seconds": Histogram("from the first token to the last", _SECONDS),
            "request_prompt_tokens": Histogram("tokens of a prompt", _TOKENS),
            "request_generation_tokens": Histogram("tokens generated for a request", _TOKENS),
        }
        self.finished: Counter[str] = Counter()
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0

    def finish(self, usage: Usage, timings: Timings, reason: str) -> None:
        """Count a finished request."""
        seen, n = self.histograms, usage.completion_tokens
        self.finished[reason] += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.generation_tokens += n
        seen["request_prompt_tokens"].observe(usage.prompt_tokens)
        seen["request_generation_tokens"].observe(n)
        seen["request_queue_time_seconds"].observe(timings.queue_s)
        seen["e2e_request_latency_seconds"].observe(timings.ttft_s + timings.decode_s)
        if n:
            seen["time_to_first_token_seconds"].observe(timings.ttft_s)
            seen["request_prefill_time_seconds"].observe(timings.prompt_s)
            seen["request_decode_time_seconds"].observe(timings.decode_s)
        if n > 1:
            for name in ("inter_token_latency_seconds", "time_per_output_token_seconds"):
                seen[name].observe(timings.decode_s / (n - 1), n - 1)


class RequestMetrics:
    """What was measured of every model's requests."""

    def __init__(self) -> None:
        self.models: dict[str, ModelMetrics] = {}

    def of(self, model: str) -> ModelMetrics:
        """Those of a model."""
        return self.models.setdefault(model, ModelMetrics())
