"""Mutated models, adapters, saved states, projectors and media, opened as a user would: what becomes of the process.

    python -m bench.fuzz --seconds 600 --first 0 [--json bench/results/fuzz.json]

Each seed is one file (gguf_mutations.py and hostile_media.py of tests/support). The process opens and uses it: it
must answer or raise one of ours within 20 seconds. Prints the counts: `ok`, `refused` (by the preflight or by
libllama), `tried` (it ended the child that tried it), and what must not happen: `died`, `hung`, `bug`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.gguf_fuzz import STATE_KINDS, Worker, mutated, mutated_adapter, mutated_state
from tests.support.gguf_worker import Base
from tests.support.hostile_media import mutated_medium, mutated_projector

from . import report


def maker(kind: str, folder: Path, base: str) -> Callable[[int], bytes]:
    """What makes the file of a seed."""
    made = {"model": mutated, "adapter": mutated_adapter, "projector": mutated_projector, "medium": mutated_medium}
    if kind in made:
        return made[kind]
    return partial(mutated_state, sound=Base(folder, base).states())


def main() -> None:
    """Run for some seconds, or so many files, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kind", choices=["model", "adapter", "state", "projector", "medium"], default="model")
    parser.add_argument("--base", choices=STATE_KINDS, default="llama", help="the model whose states are changed")
    parser.add_argument("--bundle", default="v0.5.0-cpu")
    parser.add_argument("--longest", type=float, default=20, help="seconds that a file may take")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the counts there; runs of other kinds stay")
    parser.add_argument("--no-trial", action="store_true", help="preflight alone: its gaps end the process")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    seeds: dict[str, list[int]] = {}
    until = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLCUDA_FFI_BUNDLE"] = given.bundle  # whose states are changed here, and read there
        make = maker(given.kind, Path(folder), given.base)
        options = {"model": [], "state": ["--state", given.base]}.get(given.kind, [f"--{given.kind}"])
        worker = Worker(
            Path(folder), given.bundle, *([] if given.no_trial else ["--trial"]), *options, longest=given.longest
        )
        seed = given.first
        while seed < given.first + given.files and time.monotonic() < until:
            kind, detail = worker.ask(make(seed))
            if kind == "refused" and "ended the process that tried it" in detail:
                kind = "tried"
            counts[kind] += 1
            if kind not in ("ok", "refused"):
                seeds.setdefault(kind, []).append(seed)
                print(f"seed {seed}: {kind}: {detail[:600]}", flush=True)
            seed += 1
        worker.close()
    run: dict[str, Any] = {
        "command": report.command(),
        "machine": report.host(),
        "kind": given.kind,
        "base": given.base,
    }
    run |= {"first": given.first, "last": seed - 1, "bundle": given.bundle, "counts": dict(counts), "seeds": seeds}
    print(json.dumps(run))
    if given.json:
        out: dict[str, Any] = {"benchmark": "fuzz", "runs": []}
        if given.json.exists():
            out = json.loads(given.json.read_text(encoding="utf-8"))
        same = [at for at in out["runs"] if (at["kind"], at["base"]) != (run["kind"], run["base"])]
        report.write({**out, "command": run["command"], "machine": run["machine"], "runs": [*same, run]}, given.json)


if __name__ == "__main__":
    main()
