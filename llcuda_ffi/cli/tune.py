"""`llcuda-ffi bundle tune`: which of the installed bundles is the fastest here, by measuring."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import click

from .. import bundles
from ..child_process import python_command
from ..errors import BundleError
from .options import ModelReference, examples

PROMPT, ANSWER = 256, 64  # what a chat's turn is like


@click.command(epilog=examples("bundle tune", "bundle tune ./model.gguf --use"))
@click.argument("model", default="smollm2-135m", type=ModelReference())
@click.option("-r", "--rounds", type=click.IntRange(1), default=2, show_default=True, help="Medians of so many.")
@click.option("--use", is_flag=True, help="Have the fastest used when no bundle is named.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(model: str, rounds: int, use: bool, as_json: bool) -> None:
    """Measure MODEL on the CPU with each installed bundle, fastest first; each runs in a process of its own."""
    rows = [row for name in _names() if (row := _measure(name, model, rounds)) is not None]
    if not rows:
        raise BundleError("no installed bundle could run the model: `llcuda-ffi doctor` says why")
    rows.sort(key=lambda row: float(row["seconds"]))
    if use:
        bundles.use(rows[0]["bundle"])
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(
            f"{row['bundle']:16} prompt {row['prompt_tokens_per_s']:8.1f} tokens/s, "
            f"answer {row['generated_tokens_per_s']:7.1f} tokens/s, {row['seconds']:.2f} s in all"
        )
    how = "is in use now" if use else "is the fastest: `--use`, or `llcuda-ffi bundle use`, has it used"
    click.echo(f"{rows[0]['bundle']} {how}", err=True)


def _names() -> list[str]:
    """The installed bundles that have a name to be used by."""
    return [bundle.name for bundle in bundles.installed() if bundle.path.name == bundle.name]


def _measure(name: str, model: str, rounds: int) -> dict[str, Any] | None:
    """What `llcuda-ffi bench` finds with a bundle, and the seconds of one turn; None, and a line, if it fails."""
    command = python_command("llcuda_ffi", "bench", model, "--device", "cpu", "--json")
    command += ["-p", str(PROMPT), "-n", str(ANSWER), "-r", str(rounds)]
    environment = {**os.environ, "LLCUDA_FFI_BUNDLE": name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()
        click.echo(f"{name}: {said[-1] if said else f'exit status {done.returncode}'}", err=True)
        return None
    seconds = PROMPT / found["prompt_tokens_per_s"] + ANSWER / found["generated_tokens_per_s"]
    return {**found, "bundle": name, "seconds": seconds}
