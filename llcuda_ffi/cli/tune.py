"""`llcuda-ffi bundle tune`: which of the installed bundles is the fastest here for a type of weights, by measuring."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click

from .. import bundles
from ..bundles import InstalledBundle, pins
from ..child_process import python_command
from ..devices import tuned
from ..devices.speed import ANSWER, PROMPT
from ..devices.tuned import Row, Verdict
from ..errors import BundleError
from ..fetch.cache import cache_root, folder
from ..gguf import check
from ..hardware.cpu import usable_cores
from ..hardware.supply import CpuSupply
from ..hub.references import resolve
from ..native.profile import profile
from .options import ModelReference, examples

_NEAR = 1.25  # what is slower than this times the fastest was not only disturbed


@click.command(epilog=examples("bundle tune", "bundle tune ./model.gguf", "bundle tune --forget"))
@click.argument("model", default="smollm2-135m", type=ModelReference())
@click.option("-r", "--rounds", type=click.IntRange(1), default=4, show_default=True, help="The best of so many.")
@click.option("--cpu-time", is_flag=True, help="One thread, by its CPU time: what a busy machine gets anyhow.")
@click.option("--forget", is_flag=True, help="Drop what was measured on this machine, and measure nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, rounds: int, cpu_time: bool, forget: bool, as_json: bool) -> None:
    """Measure MODEL on the CPU with each installed bundle, with and without repacked weights.

    Each runs in processes of its own, in turn; those far behind are left out of the later rounds. What is found is kept
    in the cache for models with the same types of weights: a Llama for which no bundle is named, on the CPU, uses the
    fastest, and tells so in its `placement.note`. An Embedder uses the one that is the fastest at prompts. An embedding
    model may be measured too.
    """
    if forget:
        tuned.forget()
        return
    if not _candidates():
        raise BundleError("no bundle for the CPU is installed that could be measured: `llcuda-ffi bundle install`")
    path = resolve(model)
    check(path)  # a file that no bundle takes is told once
    folder(cache_root())  # where the verdict goes, before minutes are spent on it
    types = tuned.weight_types(path)
    cpu_time = cpu_time or _busy()
    threads = 1 if cpu_time else usable_cores()
    rows = _measure(path, rounds, threads, cpu_time)
    if not rows:
        raise BundleError(f"no installed bundle could run {path.name}: the lines above say why")
    found = Verdict(path.name, datetime.date.today().isoformat(), tuple(rows))
    tuned.keep(types, found)
    if as_json:
        how = {"types": types, "threads": threads, "cpu_time": cpu_time}
        click.echo(json.dumps({**how, "best": asdict(found.best), **asdict(found)}))
        return
    told = "one thread, by its CPU time" if cpu_time else f"{threads} threads"
    reading = rows[0].answer is None
    what = f"{PROMPT} tokens" if reading else f"{PROMPT} tokens of prompt, {ANSWER} of answer"
    click.echo(f"{types}: {what}, best of {rounds}, {told}", err=True)
    for row in sorted(rows, key=lambda row: row.seconds):
        answer = "" if row.answer is None else f"answer {row.answer:7.1f} tokens/s, "
        click.echo(
            f"{row.bundle:16} {_layout(row):14} prompt {row.prompt:8.1f} tokens/s, {answer}{row.seconds:.2f} s in all"
        )
    best = f"{found.best.bundle} {_layout(found.best)}".strip()
    click.echo(f"for {types} {'an Embedder' if reading else 'a Llama'} on the CPU uses {best}", err=True)
    if (chosen := bundles.selected()) is not None:
        click.echo(f"but {chosen} was selected (LLCUDA_FFI_BUNDLE or `bundle use`), which comes first", err=True)


def _layout(row: Row) -> str:
    return {None: "", True: "repacked", False: "not repacked"}[row.repack]


def _busy() -> bool:
    """Whether other programs take more than a third of a core: seconds on the clock would say little then."""
    supply = CpuSupply()
    time.sleep(0.5)
    free = supply.available()
    return free is not None and free < usable_cores() - 0.35


def _candidates() -> list[InstalledBundle]:
    """The CPU's bundles that have a name to be used by, the default one first.

    Not the generations before it: being chosen they would take features away.
    """
    there = [
        bundle
        for bundle in bundles.installed()
        if bundle.path.name == bundle.name and bundle.backend == "cpu"
        if profile(bundle.profile).has("model_params.load_mode")
    ]
    return sorted(there, key=lambda bundle: bundle.name != pins.default_name())


def _measure(path: Path, rounds: int, threads: int, cpu_time: bool) -> list[Row]:
    """The fastest run of each candidate, of runs in turn.

    After a round only those go on that came near the fastest. The second layout of a bundle that has nothing to repack
    is not run.
    """
    digests = {bundle.name: tuned.digest(bundle) for bundle in _candidates()}
    racing = list(product(digests, (True, False)))
    rows: dict[tuple[str, bool], Row] = {}
    for _ in range(rounds):
        for name, repack in racing:
            repacking = rows.get((name, True))
            if not repack and (repacking is None or repacking.repack is None):
                continue
            run = _run(name, path, repack, threads)
            if run is None:
                continue
            prompt, answer = (run[what] and run[what][int(cpu_time)] for what in ("prompt", "answer"))
            row = rows.get((name, repack))
            if row is not None:
                prompt, answer = max(prompt, row.prompt), row.answer and max(answer, row.answer)
            rows[name, repack] = Row(
                name, digests[name], repack if run["repacked"] or not repack else None, prompt, answer
            )
        far = _NEAR * min((row.seconds for row in rows.values()), default=0.0)
        racing = [key for key in racing if key in rows and rows[key].seconds <= far]
    return [rows[key] for key in product(digests, (True, False)) if key in rows]


def _run(name: str, path: Path, repack: bool, threads: int) -> dict[str, Any] | None:
    """What devices/speed.py finds in a process of its own; None, and a line, if it fails."""
    command = python_command("llcuda_ffi.devices.speed", str(path), str(int(repack)), str(threads))
    environment = {**os.environ, "LLCUDA_FFI_BUNDLE": name}
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()
        click.echo(f"{name}: {said[-1] if said else f'exit status {done.returncode}'}", err=True)
        return None
    return found
