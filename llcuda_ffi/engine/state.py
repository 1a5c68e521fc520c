"""What a Llama tells and keeps: its metrics, its failure, and the prefixes of finished requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar, overload

from .loop import EngineLoop
from .metrics import Metrics, MetricsSnapshot
from .request import Request
from .saved_prefixes import SavedPrefixes, kept_prefixes, read_prefixes, restore_prefixes, write_prefixes
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
    def save_state(self, path: str | os.PathLike[str] | None = None) -> SavedPrefixes | int: ...
    def load_state(self, state: SavedPrefixes | str | os.PathLike[str]) -> int: ...
    def stop(self) -> None: ...
    def close(self, *, wait: bool = False) -> None: ...


class LocalEngine(EngineLoop):
    """The loop of this process, with what it tells and keeps."""

    def metrics(self) -> MetricsSnapshot:
        """As Llama.metrics."""
        schedulers, failure = self.schedulers, self.failure
        slots = [slot for scheduler in schedulers for slot in scheduler.slots]
        counted = Metrics.merged([scheduler.metrics for scheduler in schedulers]).snapshot(
            queued=sum(scheduler.queued for scheduler in schedulers),
            running=sum(scheduler.running for scheduler in schedulers),
            kv_used=sum(max(slot.n_past, len(slot.cached_tokens)) for slot in slots),
            kv_cells=sum(scheduler.context.n_ctx for scheduler in schedulers),
            n_threads=sum(scheduler.n_threads for scheduler in schedulers),
            failure=None if failure is None else f"{type(failure).__name__}: {failure}",
        )
        prefixes = [scheduler.prefixes for scheduler in schedulers]
        return replace(
            counted,
            reused={tier: sum(one.reused[tier] for one in prefixes) for tier in prefixes[0].reused},
            checkpoint_bytes=sum(one.checkpoints.nbytes for one in prefixes),
            host_cache_bytes=sum(one.host.nbytes for one in prefixes),
        )

    def clear_cache(self) -> None:
        """As Llama.clear_cache."""
        self.call(lambda scheduler: scheduler.prefixes.clear())

    def save_state(self, path: str | os.PathLike[str] | None = None) -> SavedPrefixes | int:
        """As Llama.save_state."""
        kept = [found for part in self.call(kept_prefixes) for found in part]
        kept.sort(key=lambda found: found[0])
        saved = SavedPrefixes(tuple(state for _, states in kept for state in states))
        return saved if path is None else write_prefixes(saved, path)

    def load_state(self, state: SavedPrefixes | str | os.PathLike[str]) -> int:
        """As Llama.load_state."""
        self.check()
        saved = state if isinstance(state, SavedPrefixes) else read_prefixes(state)
        states = list(saved.states)
        share = -(-sum(not one.partial for one in states) // len(self.schedulers))
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

    @overload
    def save_state(self, path: None = None) -> SavedPrefixes: ...
    @overload
    def save_state(self, path: str | os.PathLike[str]) -> int: ...
    def save_state(self, path: str | os.PathLike[str] | None = None) -> SavedPrefixes | int:
        """Save the kept prefixes of finished requests, for `load_state`: here, or in a later process.

        Args:
            path: a file to write; without one they are returned, to be kept in memory.

        Returns:
            what was saved, or how many tokens were written.

        Raises:
            OSError: the file could not be written; no half of it is left.
        """
        return self.engine.save_state(path)

    def load_state(self, state: SavedPrefixes | str | os.PathLike[str]) -> int:
        """Take what `save_state` saved into idle slots; requests that continue it need not compute it.

        Another n_parallel, n_ctx or n_batch does not matter; what changes the computation does.

        Returns:
            how many tokens are in the cache now from it.

        Raises:
            InvalidRequest: no such file, or of another model, ABI, adapter or setting, which is named.
        """
        return self.engine.load_state(state)
