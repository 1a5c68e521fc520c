"""Run in a child process by llama/test_kinds.py: every public method on one kind of model.

    python -m tests.support.kinds_worker MODEL

Prints JSON: object and method → "ok", or the name of the exception that it raised. Exceptions that are not ours, and
signals, end the process.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llcuda_ffi import AsyncLlama, Batch, Context, Embedder, Llama, Model, Reranker, SamplerChain
from llcuda_ffi.core.state import restore_state, save_state
from llcuda_ffi.errors import LlcudaError

TOKENS = [10, 11, 12, 13, 14]
FEW = {"max_tokens": 4, "seed": 1}
MESSAGES = [{"role": "user", "content": "the quick"}]


def attempt(found: dict[str, str], name: str, call: Callable[[], Any]) -> Any:
    """Note how a call ends; its result, or None."""
    try:
        result = call()
    except LlcudaError as error:
        found[name] = type(error).__name__
        return None
    found[name] = "ok"
    return result


def properties(thing: object) -> Callable[[], object]:
    """Read every public property."""
    names = [n for n in dir(type(thing)) if not n.startswith("_") and isinstance(getattr(type(thing), n), property)]
    return lambda: [getattr(thing, name) for name in names if name != "ftype"]


def low_level(found: dict[str, str], path: Path) -> None:
    model = attempt(found, "Model", lambda: Model.load(path))
    if model is None:
        return
    attempt(found, "Model.properties", properties(model))
    attempt(found, "Vocab.tokenize", lambda: model.vocab.tokenize("the quick brown"))
    context = attempt(
        found, "Context", lambda: Context(model, n_ctx=256, n_batch=64, n_threads=1, n_seq_max=2, kv_unified=True)
    )
    if context is None:
        return
    batch = Batch(16)
    batch.extend(TOKENS, output="all")
    memory = context.memory
    chain = SamplerChain(model).greedy()
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: context.encode(batch),
        "decode": lambda: context.decode(batch),
        "logits": context.logits,
        "embeddings": context.embeddings,
        "sample": lambda: chain.sample(context),
        "save_state": lambda: restore_state(context, save_state(context, 0), 1),
        "set_embeddings": lambda: context.set_embeddings(True),
        "set_causal": lambda: context.set_causal(True),
        "decode again": lambda: context.decode(batch),
        "sequence_embedding": lambda: context.sequence_embedding(0),
    }
    if memory is not None:
        calls |= {
            "memory.positions": lambda: memory.positions(0),
            "memory.copy": lambda: memory.copy(0, 1),
            "memory.remove": lambda: memory.remove(0, 2),
            "memory.shift": lambda: memory.shift(1, -1, 2),
            "memory.divide": lambda: memory.divide(1, 2),
            "memory.keep": lambda: memory.keep(1),
            "memory.clear": memory.clear,
        }
    for name, call in calls.items():
        try:
            attempt(found, f"Context.{name}", call)
        except IndexError:
            found[f"Context.{name}"] = "IndexError"
    model.close()


def llama(found: dict[str, str], path: Path) -> None:
    llm = attempt(found, "Llama", lambda: Llama(path, n_ctx=256, n_parallel=2, n_threads=1))
    if llm is None:
        return
    state = path.with_suffix(".state")
    calls: dict[str, Callable[[], object]] = {
        "generate": lambda: llm.generate(TOKENS, **FEW),
        "generate many": lambda: llm.generate([TOKENS, TOKENS[:2], "the lazy dog"], n=2, **FEW),
        "stream": lambda: list(llm.stream(TOKENS, **FEW)),
        "chat": lambda: llm.chat(MESSAGES, **FEW),
        "chat_stream": lambda: list(llm.chat_stream(MESSAGES, **FEW)),
        "logprobs": lambda: llm.generate(TOKENS, logprobs=2, **FEW),
        "prompt_logprobs": lambda: llm.generate(TOKENS, prompt_logprobs=1, **FEW),
        "choices": lambda: llm.generate(TOKENS, choices=["the", "dog"], **FEW),
        "shift": lambda: llm.generate(TOKENS, overflow="shift", max_tokens=400, ignore_eos=True),
        "save_state": lambda: llm.save_state(state),
        "load_state": lambda: llm.load_state(state),
        "clear_cache": llm.clear_cache,
        "metrics": llm.metrics,
    }
    for name, call in calls.items():
        attempt(found, f"Llama.{name}", call)

    async def later() -> object:
        async with AsyncLlama(path, n_ctx=256, n_threads=1) as both:
            return await both.generate(TOKENS, **FEW)

    attempt(found, "AsyncLlama.generate", lambda: asyncio.run(later()))
    llm.close()
    for name, settings in {
        "draft": {"draft": "ngram"},
        "kv_cells": {"kv_cells": 512, "host_cache_bytes": 1 << 20},
    }.items():
        one = attempt(found, f"Llama with {name}", lambda s=settings: Llama(path, n_ctx=256, n_threads=1, **s))
        if one is not None:
            attempt(found, f"Llama with {name}.generate", lambda one=one: one.generate([TOKENS, TOKENS], **FEW))
            one.close()


def texts(found: dict[str, str], path: Path) -> None:
    for pooling in (None, "mean", "cls", "last", "none"):
        embedder = attempt(found, f"Embedder {pooling}", lambda p=pooling: Embedder(path, pooling=p, n_contexts=1))
        if embedder is None:
            continue
        vectors = None
        if pooling != "none":
            vectors = attempt(found, f"Embedder {pooling}.encode", lambda e=embedder: e.encode(["the quick", "dog"]))
        tokens = attempt(found, f"Embedder {pooling}.encode_tokens", lambda e=embedder: e.encode_tokens("the quick"))
        assert all(one is None or (np.isfinite(one).all() and np.abs(one).sum() > 0) for one in (vectors, tokens))
        embedder.close()
    reranker = attempt(found, "Reranker", lambda: Reranker(path, n_contexts=1))
    if reranker is not None:
        attempt(found, "Reranker.scores", lambda: reranker.scores("the quick", ["brown fox", "lazy dog"]))
        reranker.close()


def main(path: Path) -> None:
    found: dict[str, str] = {}
    for part in (low_level, llama, texts):
        part(found, path)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
