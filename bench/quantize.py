"""Quantizing: `quantize()` beside llama_model_quantize called alone, and what each type keeps of the answers.

    python bench/quantize.py [-m MODEL] [-r 5] [--json bench/results/quantize.json]

The source is the model's weights as F16 (the registry's small model holds Q4_1 weights: F16 holds them exactly enough).
Speed: the two alternate, after one run of each to warm up, with the same number of threads; medians, and the range of
the ratios of the rounds (`-r 0`: none). Fidelity: over 512 tokens of English text, the mean KL divergence of the
next-token distribution from that of the F16 file, and how often the best token is the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import report

from llcuda_ffi import hub
from llcuda_ffi.conversion.tensors import save_gguf
from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.enums import FType
from llcuda_ffi.gguf import GGUFReader
from llcuda_ffi.gguf.writer import copied_metadata
from llcuda_ffi.hardware.cpu import usable_cores
from llcuda_ffi.native.load import load
from llcuda_ffi.quantization.files import quantize

TEXT = (
    "The history of the lighthouse begins with fires on hilltops. Sailors needed to know where the coast was, and a "
    "fire could be seen from far away. Later, towers were built so that the light stood higher, and lenses were made "
    "that sent it further. A keeper lived in each tower, lit the lamp in the evening and put it out in the morning. In "
    "the last century electric lamps and clocks took over this work, and most keepers left. Today ships find their way "
    "by satellite, but many lights still burn, because a light needs no battery on board and no one can switch it off "
    "from afar. "
) * 4


def alone(source: Path, target: Path, ftype: FType) -> None:
    library = load()
    params = library.ffi.new("struct llama_model_quantize_params *", library.lib.llama_model_quantize_default_params())
    params.ftype, params.nthread = int(ftype), usable_cores()
    assert library.lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), params) == 0


def alternating(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, round by round."""

    def seconds(call: Callable[[], object]) -> float:
        began = perf_counter()
        call()
        return perf_counter() - began

    ours(), theirs()
    return [(seconds(ours), seconds(theirs)) for _ in range(rounds)]


def log_probabilities(path: Path) -> np.ndarray:
    with Model.load(path) as model, Context(model, n_ctx=512) as context:
        ids = model.vocab.tokenize(TEXT)[:512]
        batch = Batch(512)
        for i, token in enumerate(ids):
            batch.add(int(token), i, output=True)
        context.decode(batch)
        logits = np.stack([context.logits(i) for i in range(len(ids))]).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def main() -> None:
    p = report.parser(__doc__, rounds=5)
    a = p.parse_args()
    source = hub.resolve(a.model)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "f16.gguf"
        with GGUFReader(source) as reader:
            save_gguf({n: reader.dequantize(n) for n in reader.tensors}, copied_metadata(reader), plain, "F16")
        reference = log_probabilities(plain)
        settings = {"model": source.name, "threads": usable_cores(), "f16_mb": plain.stat().st_size / 1e6}
        out = report.header("quantize", load(), settings)
        out["types"] = {}
        for ftype in (FType.Q8_0, FType.Q6_K, FType.Q5_K_M, FType.Q4_K_M, FType.Q4_0, FType.IQ4_XS, FType.Q2_K):
            target, other = Path(folder) / "q.gguf", Path(folder) / "alone.gguf"
            rounds = alternating(
                lambda f=ftype, t=target: quantize(plain, t, f),  # type: ignore[misc]
                lambda f=ftype, t=other: alone(plain, t, f),  # type: ignore[misc]
                a.rounds,
            )
            assert target.stat().st_size == other.stat().st_size
            found = log_probabilities(target)
            row: dict[str, Any] = {
                "mb": target.stat().st_size / 1e6,
                "kl": float((np.exp(reference) * (reference - found)).sum(1).mean()),
                "same": float((reference.argmax(1) == found.argmax(1)).mean()),
            }
            print(f"  {ftype.name}: {row['mb']:.1f} MB, KL {row['kl']:.4f}, same best token {row['same']:.1%}")
            if rounds:
                ours, theirs = (list(side) for side in zip(*rounds, strict=True))
                row["seconds"] = report.line("quantize()", ours, "s", 2)
                row["alone"] = report.line("llama_model_quantize", theirs, "s", 2)
                row["ratio"] = report.line("  ratio", report.ratios(ours, theirs), "", 2)
            out["types"][ftype.name] = row
    report.write(out, a.json)


if __name__ == "__main__":
    main()
