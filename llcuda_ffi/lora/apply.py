"""LoRA adapters on a running Llama: loaded once, swapped between requests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..core.adapter import LoraAdapter
from ..engine.scheduler import Scheduler
from ..errors import ConcurrentUseError
from ..llama import Llama


def load(llm: Llama, path: str | os.PathLike[str]) -> LoraAdapter:
    """Load a GGUF adapter for the model of `llm` (see `convert` for PEFT folders)."""
    return LoraAdapter.load(llm.model, path)


def swap(llm: Llama, adapters: Mapping[LoraAdapter, float]) -> dict[LoraAdapter, float]:
    """Use these adapters, with their scales, for all requests from now on. {} goes back to the base model.

    For a single request there is `SamplingParams.lora`. One batch has one set of adapters, so this waits for nobody: no
    request may be running. Kept prefixes are forgotten, because they were computed with the adapters of their time.

    Returns:
        what was set before.

    Raises:
        ConcurrentUseError: requests are running or waiting.
        InvalidRequest, ClosedError: an adapter of another model, or a closed one.
    """

    def change(scheduler: Scheduler) -> dict[LoraAdapter, float]:
        return scheduler.set_adapters(adapters)

    if not llm.engine.idle:
        raise ConcurrentUseError("adapters are swapped between requests: wait until the running ones are done")
    return llm.between_steps(change)[0]


@contextmanager
def applied(llm: Llama, adapters: Mapping[LoraAdapter, float]) -> Iterator[Llama]:
    """Adapters for the requests inside a `with`; what was set before comes back after it.

    with applied(llm, {adapter: 0.8}):
        llm.generate("…")
    """
    before = swap(llm, adapters)
    try:
        yield llm
    finally:
        if not llm.closed:
            swap(llm, {a: s for a, s in before.items() if not a.closed})
