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
from .options import ModelReference, examples


@click.group(epilog=examples("model list", "model pull smollm2-135m", "model fit smollm2-135m", "model recommend"))
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
        pinned = "pinned" if row["sha256"] else "unpinned"
        click.echo(f"{row['name']:34} {size:>16}  {pinned:9} {row['license']!s:14} {row['path'] or 'not fetched'}")
    if not all(row["sha256"] for row in rows):
        click.echo("unpinned: the SHA-256 that the first download had is recorded and holds from then on", err=True)


@command.command("list", epilog=examples("model list", "model list --json"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List the models known by name, and which are in the cache."""
    _show([_row(model) for model in models.all_models()], as_json)


@command.command(epilog=examples("model pull smollm2-135m", "model pull unsloth/Qwen3-8B-GGUF:Q4_K_M"))
@click.argument("reference", type=ModelReference())
@click.option("--refresh", is_flag=True, help="Ask the hub for the newest commit even if a file is there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def pull(reference: str, refresh: bool, quiet: bool) -> None:
    """Fetch a model: a name of the list, owner/repo, owner/repo:Q4_K_M, owner/repo:file.gguf, or
    hf://owner/repo/file.gguf@revision.
    """
    click.echo(hub.pull(reference, refresh=refresh, progress=False if quiet else None))


@command.command(epilog=examples("model path smollm2-135m"))
@click.argument("reference", type=ModelReference())
def path(reference: str) -> None:
    """Print the path of a model that is in the cache."""
    there = hub.cached(reference)
    if there is None:
        raise ModelNotFound(f"{reference} is not in the cache: `llcuda-ffi model pull {reference}`")
    click.echo(there)


@command.command(epilog=examples("model recommend", "model recommend --memory 8"))
@click.option("--memory", type=float, metavar="GB", help="Instead of this machine's free memory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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


@command.command(
    epilog=examples("model fit smollm2-135m", "model fit unsloth/Qwen3-8B-GGUF:Q4_K_M --memory 16"),
)
@click.argument("reference", type=ModelReference())
@click.option("--memory", type=float, metavar="GB", help="Instead of this machine's free memory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(reference: str, memory: float | None, as_json: bool) -> None:
    """Show what a model takes with contexts, parallel requests and KV cache types, and what of that fits."""
    from ..devices.memory_fit import plans
    from ..devices.placement import library_for
    from ..enums import GGMLType
    from ..gguf import GGUFReader

    free, where = (_free_memory()) if memory is None else (int(number("--memory", memory, 0, 1e6) * 1e9), "given")
    path = hub.resolve(reference)
    with GGUFReader(path) as reader:
        trained = int(reader.metadata.get(f"{reader.architecture}.context_length", 4096))
    contexts = sorted({min(trained, size) for size in (4096, 16384, 65536)})
    found = plans(library_for("cpu"), path, contexts, (1, 8), (GGMLType.F16, GGMLType.Q8_0))
    if as_json:
        click.echo(
            json.dumps([{**vars(one), "total": one.total, "fits": one.total <= free} for one in found], indent=1)
        )
        return
    click.echo(
        f"memory: {free / 1e9:.1f} GB ({where}); {path.name}: {megabytes(path.stat().st_size)} of weights", err=True
    )
    click.echo(f"{'n_ctx':>7} {'n_parallel':>10} {'kv_type':>8} {'KV cache':>12} {'compute':>10} {'total':>12}  fits")
    for one in found:
        sizes = [megabytes(size) for size in (one.kv, one.compute, one.total)]
        fits = "yes" if one.total <= free else "no"
        click.echo(
            f"{one.n_ctx:7,} {one.n_parallel:10} {one.kv_type:>8} {sizes[0]:>12} {sizes[1]:>10} {sizes[2]:>12}  {fits}"
        )


def _free_memory() -> tuple[int, str]:
    from ..hardware.memory import free_memory

    return free_memory()


command.add_command(convert)
