"""LoRA adapters on a running Llama: loaded once, swapped between requests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..core.adapter import LoraAdapter
from ..engine.scheduler import Scheduler
from ..llama import Llama


def load(llm: Llama, path: str | os.PathLike[str]) -> LoraAdapter:
    """Load a GGUF adapter for the model of `llm` (see `convert` for PEFT folders)."""
    return LoraAdapter.load(llm.model, path)


def swap(llm: Llama, adapters: Mapping[LoraAdapter, float]) -> dict[LoraAdapter, float]:
    """Use these adapters, with their scales, for all requests from now on. {} goes back to the base model.

    Under load it happens between two steps. Requests that are running or waiting end with the adapters they came to;
    one batch has one set, so they and the new ones take turns. For a single request there is `SamplingParams.lora`.
    Kept prefixes are forgotten, because they were computed with the adapters of their time.

    Returns:
        what was set before. Close it only when the requests of before are over.

    Raises:
        InvalidRequest, ClosedError: an adapter of another model, or a closed one; nothing is changed.
    """

    def change(scheduler: Scheduler) -> dict[LoraAdapter, float]:
        return scheduler.set_adapters(adapters)

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
