"""Opens a model, generates, closes it, many times; prints the process's memory on the way.

python bench/soak_open.py [rounds=1000] [model=smollm2-135m]
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

from llcuda_ffi import Llama


def rss_mib() -> float:
    """Resident memory after a collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main(rounds: int, model: str) -> None:
    """Run the rounds and say how much grew after the first tenth."""
    began, base = time.perf_counter(), 0.0
    for i in range(1, rounds + 1):
        with Llama(model, n_ctx=64, n_parallel=1, n_threads=1) as llm:
            llm.generate("Once upon a time", max_tokens=4, temperature=0, ignore_eos=True)
        if i == max(1, rounds // 10):
            base = rss_mib()
        if i % max(1, rounds // 10) == 0:
            print(f"{i:6d} rounds  {time.perf_counter() - began:7.1f} s  RSS {rss_mib():.1f} MiB", flush=True)
    print(f"grown by {rss_mib() - base:+.1f} MiB over the last {rounds - max(1, rounds // 10)} rounds")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m")
