"""What a Llama tells and keeps: its metrics, its failure, and the prefixes of finished requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .loop import EngineLoop
from .metrics import Metrics, MetricsSnapshot
from .request import Request
from .saved_prefixes import kept_prefixes, read_prefixes, restore_prefixes, write_prefixes
from .scheduler import Scheduler

T = TypeVar("T")


class Engine(Protocol):
    """What computes the requests of a Llama: an EngineLoop of this process, or one in another process."""

    @property
    def failure(self) -> BaseException | None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def idle(self) -> bool: ...
    @property
    def schedulers(self) -> Any: ...
    def start(self) -> None: ...
    def check(self) -> None: ...
    def submit(self, *requests: Request) -> None: ...
    def cancel(self, *requests: Request) -> None: ...
    def wait(self, request: Request, ready: Callable[[], bool] | None = None) -> None: ...
    def call(self, function: Callable[[Scheduler], T]) -> list[T]: ...
    def metrics(self) -> MetricsSnapshot: ...
    def clear_cache(self) -> None: ...
    def save_state(self, path: str | os.PathLike[str]) -> int: ...
    def load_state(self, path: str | os.PathLike[str]) -> int: ...
    def stop(self) -> None: ...
    def close(self, *, wait: bool = False) -> None: ...


class LocalEngine(EngineLoop):
    """The loop of this process, with what it tells and keeps."""

    def metrics(self) -> MetricsSnapshot:
        """As Llama.metrics."""
        schedulers, failure = self.schedulers, self.failure
        slots = [slot for scheduler in schedulers for slot in scheduler.slots]
        return Metrics.merged([scheduler.metrics for scheduler in schedulers]).snapshot(
            queued=sum(scheduler.queued for scheduler in schedulers),
            running=sum(scheduler.running for scheduler in schedulers),
            kv_used=sum(max(slot.n_past, len(slot.kept)) for slot in slots),
            kv_cells=sum(scheduler.context.n_ctx for scheduler in schedulers),
            n_threads=sum(scheduler.n_threads for scheduler in schedulers),
            failure=None if failure is None else f"{type(failure).__name__}: {failure}",
        )

    def clear_cache(self) -> None:
        """As Llama.clear_cache."""
        self.call(lambda scheduler: scheduler.prefixes.clear())

    def save_state(self, path: str | os.PathLike[str]) -> int:
        """As Llama.save_state."""
        kept = [found for part in self.call(kept_prefixes) for found in part]
        return write_prefixes([state for _, state in sorted(kept, key=lambda found: found[0])], path)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """As Llama.load_state."""
        self.check()
        states = read_prefixes(path)
        share = -(-len(states) // len(self.schedulers))
        return sum(self.call(lambda scheduler: restore_prefixes(scheduler, states, share)))


class LlamaState:
    """These methods of Llama.

    Attributes:
        engine: the loop that computes the requests.
    """

    engine: Engine

    @property
    def failure(self) -> BaseException | None:
        """The exception that stopped the engine, None while it is sound. A Llama that failed must be made anew."""
        return self.engine.failure

    def metrics(self) -> MetricsSnapshot:
        """Counters since the Llama was made, and percentiles over the last 1,024 requests (of each context)."""
        return self.engine.metrics()

    def between_steps(self, function: Callable[[Scheduler], T]) -> list[T]:
        """Call `function(scheduler)` for each context's scheduler while it computes nothing; the results in order.

        Under load it runs between two steps. For what changes a context: adapters, a control vector, its memory.
        """
        return self.engine.call(function)

    def clear_cache(self) -> None:
        """Forget every kept prefix of finished requests."""
        self.engine.clear_cache()

    def save_state(self, path: str | os.PathLike[str]) -> int:
        """Write the kept prefixes of finished requests to a file, for `load_state` in a later process.

        Returns:
            how many tokens were written.

        Raises:
            OSError: the file could not be written; no half of it is left.
        """
        return self.engine.save_state(path)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Read what `save_state` wrote into idle slots; requests that continue it need not compute it.

        Returns:
            how many tokens are in the cache now from the file.

        Raises:
            InvalidRequest: no such file, or of another model, ABI or kind of context.
        """
        return self.engine.load_state(path)
