"""`llcuda-ffi cache`: the prefixes that Llama(disk_cache=…) keeps on disk."""

from __future__ import annotations

import json

import click

from ..engine.disk_store import DiskStore, disk_cache_folder
from ..fetch.progress import megabytes
from .options import examples


@click.group(epilog=examples("cache info", "cache clear"))
def command() -> None:
    """Show or empty the disk cache of computed prefixes (Llama(disk_cache=…), serve --disk-cache)."""


@command.command(epilog=examples("cache info"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Say where the cache is and what it holds."""
    folder = disk_cache_folder()
    usage = DiskStore(folder, 0).usage()
    if as_json:
        row = {"folder": str(folder), "files": usage.files, "bytes": usage.nbytes, "models": usage.models}
        click.echo(json.dumps(row))
        return
    click.echo(f"{folder}: {usage.files} files, {megabytes(usage.nbytes)}, of {usage.models} models and settings")


@command.command(epilog=examples("cache clear"))
def clear() -> None:
    """Remove all of it. Processes that use it go on, and compute what they no longer find."""
    removed = DiskStore(disk_cache_folder(), 0).clear()
    click.echo(f"removed {removed.files} files, {megabytes(removed.nbytes)}")
