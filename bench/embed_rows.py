"""Many short texts through `llcuda-ffi embed`: killed twice at random, resumed, checked; the most memory it took.

python bench/embed_rows.py [-n 200000] [--json FILE]
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import report
from embeddings import WORDS

from llcuda_ffi import Embedder

PART = 2048


def text(i: int) -> str:
    """Row i: two words and a number, another one for every row."""
    return f"{WORDS[i % len(WORDS)]} {WORDS[i // len(WORDS) % len(WORDS)]} {i // len(WORDS) ** 2}"


def main() -> None:
    parser = report.parser(__doc__, rounds=1)
    parser.add_argument("-n", "--rows", type=int, default=200_000)
    parser.set_defaults(model="all-minilm-l6-v2-q8_0")
    args = parser.parse_args()
    r = random.Random()
    with tempfile.TemporaryDirectory() as place, Embedder(args.model) as embedder:
        result = report.header("embed rows", embedder.model.library, {"rows": args.rows, "part_rows": PART})
        source, target = Path(place) / "in.txt", Path(place) / "out.npy"
        source.write_text("".join(text(i) + "\n" for i in range(args.rows)))
        code = "from llcuda_ffi.cli import main; main()"
        options = ["embed", str(source), str(target), "-m", args.model, "-q", "--part-rows", str(PART)]
        parts, n_parts = Path(place) / "out.npy.parts", -(-args.rows // PART)
        # a kill comes when so many parts are there, and a random moment later
        wanted = [*sorted(r.sample(range(1, max(3, n_parts - 1)), 2)), None]
        seconds, peak, left = 0.0, 0, []
        for limit in wanted:
            start = time.perf_counter()
            child = subprocess.Popen([sys.executable, "-c", code, *options])
            if limit is not None:
                while len(list(parts.glob("part-*.npy"))) < limit and child.poll() is None:
                    time.sleep(0.05)
                time.sleep(r.uniform(0, 2))
                child.send_signal(signal.SIGKILL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            seconds += time.perf_counter() - start
            peak = max(peak, usage.ru_maxrss)
            if limit is not None:
                left.append(len(list(parts.glob("part-*.npy"))))
            elif child.returncode:
                raise RuntimeError(f"the last run ended with {child.returncode}")
        vectors = np.load(target, mmap_mode="r")
        borders = {i for b in range(0, args.rows, PART) for i in (b - 1, b) if i >= 0}
        rows = sorted(borders | {args.rows - 1} | set(r.sample(range(args.rows), min(args.rows, 3000))))
        difference = np.abs(np.asarray(vectors[rows]) - embedder.encode([text(i) for i in rows]))
        result.update(
            rows=int(vectors.shape[0]),
            killed_after_parts=left,
            parts=n_parts,
            peak_rss_mb=round(peak / 1024),
            seconds=round(seconds),
            rows_checked=len(rows),
            largest_difference=float(difference.max()),
            nan_rows=int(np.isnan(vectors).any(axis=1).sum()),
            load_after=round(os.getloadavg()[0], 2),
        )
    for name, value in list(result.items())[4:]:
        print(f"  {name}: {value}")
    report.write(result, args.json)


if __name__ == "__main__":
    main()
