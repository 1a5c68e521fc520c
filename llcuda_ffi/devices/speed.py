"""How fast the bundle in use computes a model on the CPU: `python -m llcuda_ffi.devices.speed MODEL REPACK THREADS`.

One process for each measurement, because a process loads one bundle. It prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any

from ..core.batch import Batch
from ..core.context import Context
from ..core.model import Model
from ..params import ContextParams

_STRETCH = 8
PROMPT, ANSWER = 128, 32  # tokens: long enough to tell kernels apart, seconds in all


def measure(path: str, use_extra_bufts: bool, n_threads: int) -> dict[str, Any]:
    """Tokens per second of wall clock and of CPU time, of a prompt and of the answer after it, after a short warm-up.

    The best of three prompts, and of the answer's stretches of 8 tokens. A model that only reads (BERT) has no answer.

    Returns:
        "prompt" and "answer", each [tokens per second, tokens per CPU second] or None, and "repacked": whether libllama
        keeps weights in another layout than the file's.
    """
    with Model.load(path, n_gpu_layers=0, use_extra_bufts=use_extra_bufts, trial=False) as model:
        params = ContextParams(
            n_ctx=PROMPT + ANSWER, n_batch=PROMPT, n_ubatch=PROMPT, n_threads=n_threads, n_threads_batch=n_threads,
            embeddings=model.metadata.get(f"{model.architecture}.attention.causal") == "false",
        )  # fmt: skip
        with Context(model, params) as context:
            _decode(context, 0, 8)
            runs = []
            for _ in range(3):
                if context.memory is not None:
                    context.memory.clear()
                runs.append(_rates(context, [(0, PROMPT)]))
            prompt = _best(runs)
            answer = None
            if context.memory is not None:
                # the fastest stretch is the one that others disturbed least
                starts = range(PROMPT, PROMPT + ANSWER, _STRETCH)
                answer = _best([_rates(context, [(at + i, 1) for i in range(_STRETCH)]) for at in starts])
    repacked = any("REPACK" in name or "AMX" in name for name in model.placement.buffers)
    return {"prompt": prompt, "answer": answer, "repacked": repacked}


def _best(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The highest of each rate."""
    return max(wall for wall, _ in runs), max(cpu for _, cpu in runs)


def _rates(context: Context, steps: list[tuple[int, int]]) -> tuple[float, float]:
    wall, cpu = perf_counter(), process_time()
    for begin, n in steps:
        _decode(context, begin, n)
    tokens = sum(n for _, n in steps)
    return tokens / (perf_counter() - wall), tokens / max(process_time() - cpu, 1e-6)


def _decode(context: Context, begin: int, n: int) -> None:
    batch = Batch(n)
    for i in range(n):  # which tokens they are does not change how long they take
        output = i == n - 1 or context.memory is None
        batch.add((begin + i) % context.model.vocab.n_tokens, begin + i, output=output)
    context.decode(batch)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2] == "1", int(sys.argv[3]))))
