"""What every benchmark prints and writes: the machine, medians with their range, one JSON file per run."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import llcuda_ffi
from llcuda_ffi.hardware.cpu import cpu_name, usable_cores
from llcuda_ffi.native.load import Library


def parser(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", default="smollm2-135m", help="path, registry name or reference")
    p.add_argument("-r", "--rounds", type=int, default=rounds, help=f"after one warm-up round (default {rounds})")
    p.add_argument("-t", "--threads", type=int, default=usable_cores(), help="CPU threads on every side")
    p.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there too, e.g. bench/results/NAME.json"
    )
    return p


def host() -> dict[str, Any]:
    """Where was measured, and when."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def command() -> str:
    """The command that runs, to be given again: files by their names alone, where results go left out."""
    script, words, spec = Path(sys.argv[0]).name, sys.argv[1:], sys.modules["__main__"].__spec__
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    words = [re.sub(r"(^|=)/(?:[^/]+/)*", r"\1", word) for word in words]
    return shlex.join(["python", *([f"bench/{script}"] if spec is None else ["-m", spec.name]), *words])


def machine(library: Library) -> dict[str, Any]:
    """Where and with what was measured."""
    return {
        **host(),
        "numpy": np.__version__,
        "llcuda_ffi": llcuda_ffi.__version__,
        "bundle": library.bundle.name,
        "backends": list(library.backends),
        "cpu_variant": library.cpu_variant,
    }


def header(name: str, library: Library, settings: dict[str, Any]) -> dict[str, Any]:
    """Print and return the beginning of a report."""
    report = {"benchmark": name, "command": command(), "machine": machine(library), "settings": settings}
    print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in report["machine"].items()))
    print("  " + ", ".join(f"{k}={v}" for k, v in settings.items()), flush=True)
    return report


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median and what it is of."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def line(label: str, values: Sequence[float], unit: str, digits: int = 1) -> dict[str, Any]:
    """Print one measured quantity; returns its `spread`."""
    s = spread(values)
    low, high = s["min"], s["max"]
    print(
        f"  {label:<44} {s['median']:>9.{digits}f} {unit}  ({low:.{digits}f} to {high:.{digits}f}, n={s['n']})",
        flush=True,
    )
    return s


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round: the two values of a round were measured one after the other."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def write(report: dict[str, Any], path: Path | None) -> None:
    """Write the report, if asked to."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}", file=sys.stderr)
