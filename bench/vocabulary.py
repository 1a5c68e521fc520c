"""Choosing a token where the vocabulary is large: by libllama from the whole row, and by this package from few tokens.

    python bench/vocabulary.py [-r 200] [--vocab 128256 262144] [--sequences 1 32]
        [--json bench/results/vocabulary.json]

The models are tiny, the rows random. The chain is the default one (top-k 40, top-p, min-p, temperature). The two sides
alternate; before each call the rows are written again, so that they come from cold memory, as after a decode on a GPU.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import report

from llcuda_ffi import Batch, Context, Model, SamplingParams
from llcuda_ffi.core.sampler import sample_rows
from llcuda_ffi.engine.sampling.chain import build_chain
from llcuda_ffi.engine.sampling.row_pool import RowPool
from llcuda_ffi.engine.sampling.topk_prefilter import reach
from llcuda_ffi.native.load import load

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.tiny_model import make_tiny_llama


def measured(path: Path, sequences: int, rounds: int, threads: int) -> dict[str, Any]:
    """Microseconds for all rows of one batch, on both sides."""
    params = SamplingParams()
    rng, spoiler = np.random.default_rng(1), np.zeros(1 << 23)
    with Model.load(path) as model, Context(model, n_ctx=16 * sequences, n_seq_max=sequences) as context:
        batch = Batch(sequences, sequences)
        for i in range(sequences):
            batch.add(i, 0, i, output=True)
        context.decode(batch)
        logits = context.output_logits(sequences)
        assert logits is not None
        chains = [[build_chain(model, params, i) for i in range(sequences)] for _ in range(2)]
        needed = reach(chains[0][0].names, params, model.vocab)
        assert needed
        pool = RowPool(context, threads)
        times: tuple[list[float], list[float]] = ([], [])
        rows = rng.normal(size=logits.shape).astype(np.float32)
        for i in range(rounds + 3):
            logits[:] = np.roll(rows, i, axis=1)
            found = []
            for side, values in enumerate(times):
                spoiler += 1  # 64 MB: the rows leave the caches
                began = perf_counter()
                if side == 0:
                    found.append(sample_rows(context, [(chain, row) for row, chain in enumerate(chains[0])]))
                else:
                    jobs = [(chain, row, needed) for row, chain in enumerate(chains[1])]
                    found.append(pool.sample(jobs, [], logits))
                if i >= 3:
                    values.append((perf_counter() - began) * 1e6)
            assert found[0] == found[1]
        pool.close()
    name = f"{rows.shape[1]:,} tokens, {sequences} row{'s' if sequences > 1 else ''}"
    return {
        "libllama": report.line(f"{name}, libllama", times[0], "µs", 0),
        "ours": report.line(f"{name}, ours", times[1], "µs", 0),
    }


def main() -> None:
    p = report.parser(__doc__, rounds=200)
    p.add_argument("--vocab", type=int, nargs="+", default=[128_256, 262_144], help="sizes of vocabularies")
    p.add_argument("--sequences", type=int, nargs="+", default=[1], help="rows chosen from together")
    a = p.parse_args()
    out = report.header("vocabulary", load(), {"threads": a.threads, "rounds": a.rounds})
    out["rows"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in a.vocab:
            path = Path(folder) / f"{size}.gguf"
            make_tiny_llama(path, n_vocab=size)
            out["rows"][str(size)] = {str(n): measured(path, n, a.rounds, a.threads) for n in a.sequences}
    report.write(out, a.json)


if __name__ == "__main__":
    main()
