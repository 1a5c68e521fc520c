"""What a Llama tells and keeps: its metrics, its failure, and the prefixes of finished requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from .loop import EngineLoop
from .metrics import Metrics, MetricsSnapshot
from .saved_prefixes import kept_prefixes, read_prefixes, restore_prefixes, write_prefixes
from .scheduler import Scheduler

T = TypeVar("T")


class LlamaState:
    """These methods of Llama.

    Attributes:
        engine: the loop that computes the requests.
    """

    engine: EngineLoop

    @property
    def failure(self) -> BaseException | None:
        """The exception that stopped the engine, None while it is sound. A Llama that failed must be made anew."""
        return self.engine.failure

    def metrics(self) -> MetricsSnapshot:
        """Counters since the Llama was made, and percentiles over the last 1,024 requests (of each context)."""
        schedulers, failure = self.engine.schedulers, self.engine.failure
        slots = [slot for scheduler in schedulers for slot in scheduler.slots]
        return Metrics.merged([scheduler.metrics for scheduler in schedulers]).snapshot(
            queued=sum(scheduler.queued for scheduler in schedulers),
            running=sum(scheduler.running for scheduler in schedulers),
            kv_used=sum(max(slot.n_past, len(slot.kept)) for slot in slots),
            kv_cells=sum(scheduler.context.n_ctx for scheduler in schedulers),
            n_threads=sum(scheduler.n_threads for scheduler in schedulers),
            failure=None if failure is None else f"{type(failure).__name__}: {failure}",
        )

    def between_steps(self, function: Callable[[Scheduler], T]) -> list[T]:
        """Call `function(scheduler)` for each context's scheduler while it computes nothing; the results in order.

        Under load it runs between two steps. For what changes a context: adapters, a control vector, its memory.
        """
        return self.engine.call(function)

    def clear_cache(self) -> None:
        """Forget every kept prefix of finished requests."""
        self.engine.call(lambda scheduler: scheduler.prefixes.clear())

    def save_state(self, path: str | os.PathLike[str]) -> int:
        """Write the kept prefixes of finished requests to a file, for `load_state` in a later process.

        Returns:
            how many tokens were written.

        Raises:
            OSError: the file could not be written; no half of it is left.
        """
        kept = [found for part in self.engine.call(kept_prefixes) for found in part]
        return write_prefixes([state for _, state in sorted(kept, key=lambda found: found[0])], path)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Read what `save_state` wrote into idle slots; requests that continue it need not compute it.

        Returns:
            how many tokens are in the cache now from the file.

        Raises:
            InvalidRequest: no such file, or of another model, ABI or kind of context.
        """
        self.engine.check()
        states = read_prefixes(path)
        share = -(-len(states) // len(self.engine.schedulers))
        return sum(self.engine.call(lambda scheduler: restore_prefixes(scheduler, states, share)))
