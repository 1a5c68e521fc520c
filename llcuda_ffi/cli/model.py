"""`llcuda-ffi model`: model files by name."""

from __future__ import annotations

import json

import click

from .. import hub
from ..errors import ModelNotFound
from ..fetch.progress import megabytes
from ..hub import registry as models
from ..params import number
from .convert import command as convert


@click.group()
def command() -> None:
    """List, fetch and locate models."""


def _row(model: models.RegisteredModel) -> dict[str, object]:
    there = hub.cached(model.name)
    return {
        "name": model.name,
        "file": model.file,
        "size": model.size,
        "estimated_size": model.estimated_size,
        "sha256": model.sha256,
        "license": model.license,
        "repo": model.repo,
        "path": str(there) if there else None,
    }


def _show(rows: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        about = "" if row["size"] else "about "
        size = about + megabytes(int(str(row["estimated_size"])))
        click.echo(f"{row['name']:26} {size:>16}  {row['license']!s:14} {row['path'] or 'not fetched'}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_models(as_json: bool) -> None:
    """List the models known by name, and which are in the cache."""
    _show([_row(model) for model in models.all_models()], as_json)


@command.command()
@click.argument("reference")
@click.option("--refresh", is_flag=True, help="Ask the hub for the newest commit even if a file is there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def pull(reference: str, refresh: bool, quiet: bool) -> None:
    """Fetch a model: a name of the list, owner/repo:file.gguf, or hf://owner/repo/file.gguf@revision."""
    click.echo(hub.pull(reference, refresh=refresh, progress=False if quiet else None))


@command.command()
@click.argument("reference")
def path(reference: str) -> None:
    """Print the path of a model that is in the cache."""
    there = hub.cached(reference)
    if there is None:
        raise ModelNotFound(f"{reference} is not in the cache: `llcuda-ffi model pull {reference}`")
    click.echo(there)


@command.command()
@click.option("--memory", type=float, metavar="GB", help="Instead of this machine's free memory.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def recommend(memory: float | None, as_json: bool) -> None:
    """List the models that fit this machine's free memory (of its GPU if it has one), largest first."""
    if memory is None:
        free, where = _free_memory()
    else:
        free, where = int(number("--memory", memory, 0, 1e6) * 1e9), "given"
    click.echo(f"memory: {free / 1e9:.1f} GB ({where})", err=True)
    rows = [_row(model) for model in models.recommended(free)]
    if not rows:
        click.echo("no model of the list fits: `llcuda-ffi model list` shows them all", err=True)
    _show(rows, as_json)


def _free_memory() -> tuple[int, str]:
    from ..hardware.memory import free_memory

    return free_memory()


command.add_command(convert)
