"""Prefill and decode of model files with every installed CPU bundle, and how good the choice of `bundle tune` is.

    python bench/bundles.py FILE.gguf … --json bench/results/bundles.json

Each file is tuned twice: the rows of the first run are the table, the choice of the second is judged by them, so that
it is not judged by the noise that it was made with. All sides of a run take turns. `--cpu-time` counts CPU time of one
thread, which is what can be compared on a busy machine. Rows of earlier files stay in the JSON file.

    python bench/bundles.py FILE.gguf … --peer PYTHON --json bench/results/bundles.json

times the best row of each file in the JSON file beside llama-cpp-python, as it is installed for that PYTHON, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report

from llcuda_ffi.hardware.cpu import cpu_features, usable_cores

_RATES = ("prompt", "answer")


def tune(path: Path, rounds: int, cpu_time: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "llcuda_ffi", "bundle", "tune", str(path), "-r", str(rounds), "--json"]
    done = subprocess.run([*command, *["--cpu-time"] * cpu_time], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def seconds(row: dict[str, Any]) -> float:
    return float(128 / row["prompt"] + 32 / row["answer"])


def compare(path: Path, rounds: int, cpu_time: bool) -> dict[str, Any]:
    table, other = tune(path, rounds, cpu_time), tune(path, rounds, cpu_time)
    chosen = other["best"]
    same = next(r for r in table["rows"] if (r["bundle"], r["repack"]) == (chosen["bundle"], chosen["repack"]))
    return {
        "types": table["types"],
        "threads": table["threads"],
        "cpu_time": table["cpu_time"],
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "rows": table["rows"],
        "chosen": {name: chosen[name] for name in ("bundle", "repack")},
        "chosen_over_best": seconds(same) / min(map(seconds, table["rows"])),
    }


def beside(python: str, path: Path, best: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The best row and llama-cpp-python in turn: medians, and the median ratio."""
    threads = str(usable_cores())
    side = str(Path(__file__).with_name("sides") / "llama_cpp_rates.py")
    repack = str(int(best["repack"] is not False))
    ours = [sys.executable, "-m", "llcuda_ffi.devices.speed", str(path), repack, threads]
    runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for _ in range(rounds):
        pair = []
        for command in (ours, [python, side, str(path), threads]):
            environment = {**os.environ, "LLCUDA_FFI_BUNDLE": best["bundle"]}
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            pair.append(json.loads(said.splitlines()[-1]))
        runs.append((pair[0], pair[1]))
    found: dict[str, Any] = {"bundle": best["bundle"], "version": runs[0][1]["version"], "rounds": rounds}
    for what in _RATES:
        ratios = [mine[what][0] / theirs[what] for mine, theirs in runs]
        found[what] = {
            "ours": statistics.median(mine[what][0] for mine, _ in runs),
            "theirs": statistics.median(theirs[what] for _, theirs in runs),
            "ratio": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
        }
    return found


def printed(found: dict[str, Any]) -> None:
    """As a table of markdown: prompt / answer."""
    columns = list(dict.fromkeys((r["bundle"], r["repack"] is False) for f in found.values() for r in f["rows"]))
    titles = [name + (", not repacked" if plain else "") for name, plain in columns]
    print("| weights |" + "".join(f" {title} |" for title in titles) + " chosen | over the best |")
    print("|-|" + "-|" * (len(columns) + 2))
    for name, one in found.items():
        rows = {(r["bundle"], r["repack"] is False): f"{r['prompt']:.0f} / {r['answer']:.1f}" for r in one["rows"]}
        chosen = one["chosen"]["bundle"] + (", not repacked" if one["chosen"]["repack"] is False else "")
        cells = "".join(f" {rows.get(column, '')} |" for column in columns)
        print(f"| {name} |{cells} {chosen} | {one['chosen_over_best']:.3f} |")
    for name, one in found.items():
        if "peer" in one:
            cells = (f"{r['ours']:.0f} / {r['theirs']:.0f} = {r['ratio']:.2f}" for r in map(one["peer"].get, _RATES))
            print(f"| {name} | {one['peer']['bundle']} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("-r", "--rounds", type=int, default=4)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--peer", help="a Python that has llama-cpp-python")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    machine = report.host() | {"features": cpu_features()}
    out: dict[str, Any] = {"benchmark": "bundles", "command": report.command(), "machine": machine, "files": {}}
    if options.json.exists():
        before = json.loads(options.json.read_text())
        out["files"] = before["files"]
        if options.peer:  # beside what was measured then
            out |= {"command": before["command"], "machine": before["machine"]}
    for path in options.models:
        if options.peer:
            one = out["files"][path.stem]
            one["peer"] = beside(options.peer, path, min(one["rows"], key=seconds), options.rounds)
        else:
            out["files"][path.stem] = compare(path, options.rounds, options.cpu_time)
        options.json.write_text(json.dumps(out, indent=1) + "\n")
    printed(out["files"])


if __name__ == "__main__":
    main()
