"""What a Llama tells and keeps: its metrics, and the prefixes of finished requests."""

from __future__ import annotations

import os

from .driver import Driver
from .metrics import Metrics, MetricsSnapshot
from .replicas import Lanes
from .saved_prefixes import load_prefixes, save_prefixes


class LlamaState:
    """These methods of Llama."""

    _driver: Driver | Lanes

    def metrics(self) -> MetricsSnapshot:
        """Counters since the Llama was made, and percentiles over the last 1,024 requests (of each context)."""
        schedulers = self._driver.schedulers
        slots = [slot for scheduler in schedulers for slot in scheduler.slots]
        return Metrics.merged([scheduler.metrics for scheduler in schedulers]).snapshot(
            queued=sum(len(scheduler._waiting) for scheduler in schedulers),
            running=sum(slot.request is not None for slot in slots),
            kv_used=sum(max(slot.n_past, len(slot.kept)) for slot in slots),
            kv_cells=sum(scheduler.context.n_ctx for scheduler in schedulers),
            n_threads=sum(scheduler.n_threads for scheduler in schedulers),
        )

    def clear_cache(self) -> None:
        """Forget every kept prefix of finished requests."""
        with self._driver.paused() as schedulers:
            for scheduler in schedulers:
                scheduler.prefixes.clear()

    def save_state(self, path: str | os.PathLike[str]) -> int:
        """Write the kept prefixes of finished requests to a file, for `load_state` in a later process.

        Returns:
            how many tokens were written.

        Raises:
            OSError: the file could not be written; no half of it is left.
        """
        with self._driver.paused() as schedulers:
            return save_prefixes(schedulers, path)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Read what `save_state` wrote into idle slots; requests that continue it need not compute it.

        Returns:
            how many tokens are in the cache now from the file.

        Raises:
            InvalidRequest: no such file, or of another model, ABI or kind of context.
        """
        with self._driver.paused() as schedulers:
            return load_prefixes(schedulers, path)
