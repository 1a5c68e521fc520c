"""Texts per second of all-MiniLM-L6-v2: this package and others on the same texts, side by side, medians.

    python bench/embeddings.py [-n TEXTS] [--peer llama_cpp_python-0.3.36] [--json FILE]
    python bench/embeddings.py --table [-n 150]

Each round runs every candidate once, one after the other, so that a machine that slows down slows all of them; ratios
are taken round by round. "library alone" is what libllama itself costs: llama_decode of the same packs, made before,
on as many contexts, nothing else. --table measures file types, pack sizes, and contexts x threads instead.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import embeddings_peers as peers
import numpy as np
import report

from llcuda_ffi import Batch, Context, Embedder
from llcuda_ffi.conversion.hugging_face import convert
from llcuda_ffi.embedding.waiting import Job, Waiting

_WORDS = "the of and to in is that for it as was with be by on not system language model network river mountain history"
WORDS = (
    _WORDS + " science music energy question number theory water light market people health doctor animal plant"
).split()
TYPES = ("q8_0", "f16", "bf16", "f32", "Q4_0", "IQ4_NL", "Q5_0", "Q4_K_M")
PACKS = (32, 64, 96, 128, 192, 256, 512)


def texts(n: int) -> list[str]:
    """Mixed lengths, about 55 tokens on average, none beyond the model's 256."""
    r = random.Random(7)
    return [
        " ".join(r.choice(WORDS) for _ in range(min(250, max(1, int(r.lognormvariate(3.72, 0.75)))))) for _ in range(n)
    ]


class Alone:
    """libllama without this package's work: packs made before, decoded by a thread for each context."""

    def __init__(self, embedder: Embedder, batch: Sequence[str]) -> None:
        contexts: list[Context] = embedder._queue(embedder._pooling)._contexts
        self._lib = embedder.model.library.lib
        self._contexts = [context.pointer for context in contexts]
        first = contexts[0]
        waiting = Waiting()
        job = Job([embedder.tokenize(text) for text in batch], embedder.batch_tokens, None)
        waiting.add(job)
        self._packs: list[Batch] = []
        while waiting:
            self._packs.append(Batch(first.n_ubatch))
            for s, (_, i) in enumerate(waiting.take(first.n_ubatch, first.n_seq_max)):
                self._packs[-1].extend(job.texts[i], seq_id=s, output="all")

    def __call__(self, _batch: Sequence[str]) -> None:
        waiting = iter(list(self._packs))
        failed: list[int] = []

        def work(context: Any) -> None:
            for pack in waiting:  # the interpreter's lock makes one iterator safe for several threads
                code = self._lib.llama_decode(context, pack.native())
                if code:
                    failed.append(code)

        threads = [threading.Thread(target=work, args=(context,)) for context in self._contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise RuntimeError(f"llama_decode failed: {failed[0]}")


def timed(encode: Callable[[Sequence[str]], object]) -> Callable[[Sequence[str]], float]:
    """Seconds of a call."""

    def run(batch: Sequence[str]) -> float:
        start = perf_counter()
        encode(batch)
        return perf_counter() - start

    return run


def measure(
    runs: dict[str, Callable[[Sequence[str]], float]], batch: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """Texts per second of each candidate, in each round."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(batch[:32])
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(len(batch) / run(batch))
    return rates


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """The package beside the others."""
    batch = texts(args.texts)
    ours = Embedder(args.model)
    tokens = sum(len(ours.tokenize(text)) for text in batch)
    settings = {"texts": len(batch), "tokens per text": round(tokens / len(batch), 1), "rounds": args.rounds}
    result = report.header("embeddings", ours.model.library, {**settings, "model": ours.model.path.name})
    runs = {
        "ours": timed(ours.encode),
        "library alone, the same packs": timed(Alone(ours, batch)),
        "ours, one context, all threads": timed(Embedder(args.model, n_contexts=1, n_threads=args.threads).encode),
        "ours, f16": timed(Embedder(args.f16).encode),
    }
    theirs = {
        "sentence-transformers (torch)": peers.sentence_transformers(args.threads),
        "onnxruntime, int8": peers.onnx_int8(args.threads),
    }
    runs.update({name: timed(encode) for name, encode in theirs.items() if encode is not None})
    child = None
    if args.peer:
        child = peers.LlamaCppPython(args.peer, ours.model.library.bundle.path, ours.model.path, args.threads)
        runs[f"{child.name}, list"] = lambda b: child.seconds("list", b)
        runs[f"{child.name}, one by one"] = lambda b: child.seconds("one", b)
    rates = measure(runs, batch, args.rounds)
    result["texts_per_s"] = {name: report.line(name, values, "texts/s") for name, values in rates.items()}
    result["ours_to"] = {
        name: report.line(f"ours / {name}", report.ratios(rates["ours"], values), "x", 2)
        for name, values in rates.items()
        if name != "ours"
    }
    few = batch[:100]
    result["cosine_min"] = {}
    reference = theirs["sentence-transformers (torch)"]
    for name, encode in {"ours": ours.encode, "onnxruntime, int8": theirs["onnxruntime, int8"]}.items():
        if reference is not None and encode is not None:
            cosine = np.sum(np.asarray(encode(few)) * np.asarray(reference(few)), axis=1)
            result["cosine_min"][name] = float(cosine.min())
            print(
                f"  {'cosine with sentence-transformers, ' + name:<44} {cosine.min():.5f} at least, {cosine.mean():.5f}"
            )
    result["load_after"] = round(os.getloadavg()[0], 2)
    if child is not None:
        child.close()
    return result


def table(args: argparse.Namespace) -> dict[str, Any]:
    """File type, pack size, contexts x threads, flash attention: each changed by itself from the default."""
    batch, cores = texts(args.texts), args.threads
    runs: dict[str, Embedder] = {"default": Embedder(args.model)}
    result = report.header("embeddings table", runs["default"].model.library, {"texts": len(batch)})
    model = runs["default"].model
    for pack in PACKS:
        runs[f"packs of {pack} tokens"] = Embedder(model, batch_tokens=pack)
    counts = sorted({1, 2, max(1, cores // 2), cores})
    for contexts in counts:
        runs[f"{contexts} contexts x {cores // contexts} threads"] = Embedder(
            model, n_contexts=contexts, n_threads=cores // contexts
        )
    runs[f"{2 * cores} contexts x 1 thread"] = Embedder(model, n_contexts=2 * cores, n_threads=1)
    runs["flash attention off"] = Embedder(model, flash_attn=False)
    with TemporaryDirectory() as place:
        folder = peers.minilm()
        for type in TYPES if folder is not None else ():
            runs[f"file type {type}"] = Embedder(convert(folder, Path(place) / f"{type}.gguf", type))
        rates = measure({name: timed(e.encode) for name, e in runs.items()}, batch, args.rounds)
        first = statistics.median(rates["default"])
        result["texts_per_s"] = {name: report.line(name, values, "texts/s") for name, values in rates.items()}
        result["to_default"] = {name: round(statistics.median(v) / first, 3) for name, v in rates.items()}
        exact = runs.get("file type f32")
        if exact is not None:
            reference = exact.encode(batch[:60])
            cosines = {t: np.sum(runs[f"file type {t}"].encode(batch[:60]) * reference, axis=1).min() for t in TYPES}
            result["cosine_with_f32"] = {t: round(float(c), 5) for t, c in cosines.items()}
            print(f"  cosine with f32, at least: {result['cosine_with_f32']}")
        for embedder in runs.values():
            embedder.close()
    return result


def main() -> None:
    parser = report.parser(__doc__, rounds=5)
    parser.add_argument("-n", "--texts", type=int, default=1000)
    parser.add_argument("--f16", default="all-minilm-l6-v2", help="the F16 file to compare with")
    parser.add_argument("--peer", metavar="FOLDER", help="llama-cpp-python's unpacked source distribution")
    parser.add_argument("--table", action="store_true", help="settings of this package instead of other packages")
    parser.set_defaults(model="all-minilm-l6-v2-q8_0")
    args = parser.parse_args()
    report.write(table(args) if args.table else compare(args), args.json)


if __name__ == "__main__":
    main()
