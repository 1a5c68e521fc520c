"""This package."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from worker import TEMPERATURE, TOP_K, TOP_P, Side, serve

import llcuda_ffi
from llcuda_ffi import Llama

SAMPLED: dict[str, Any] = {"temperature": TEMPERATURE, "top_k": TOP_K, "top_p": TOP_P, "min_p": 0.0, "seed": 1}


class Ours(Side):
    """Llama."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        self._llm = Llama(model, n_ctx=2048, n_parallel=int(extra.get("parallel", 16)), n_threads=threads)

    def version(self) -> str:
        return f"llcuda_ffi {llcuda_ffi.__version__}, {self._llm.model.library.bundle.name}"

    def prefill(self, text: str) -> int:
        return self._llm.generate(
            text, max_tokens=1, prefix_cache=False, ignore_eos=True, **SAMPLED
        ).usage.prompt_tokens

    def decode(self, text: str, n: int) -> int:
        done = self._llm.generate(text, max_tokens=n, prefix_cache=False, ignore_eos=True, **SAMPLED)
        return done.usage.completion_tokens

    def batch(self, texts: Sequence[str], n: int) -> int:
        done = self._llm.generate(list(texts), max_tokens=n, prefix_cache=False, ignore_eos=True, **SAMPLED)
        return sum(one.usage.completion_tokens for one in done)

    def again(self, text: str) -> int:
        return self._llm.generate(text, max_tokens=1, ignore_eos=True, **SAMPLED).usage.prompt_tokens

    def stream(self, text: str, n: int, came: Callable[[], object]) -> None:
        for _ in self._llm.stream(text, max_tokens=n, prefix_cache=False, ignore_eos=True, **SAMPLED):
            came()

    def structured(self, text: str, schema: dict[str, Any], n: int) -> int:
        done = self._llm.generate(text, max_tokens=n, json_schema=schema, prefix_cache=False, **SAMPLED)
        if done.finish_reason != "length":
            json.loads(done.text)
        return done.usage.completion_tokens


if __name__ == "__main__":
    serve(Ours)
