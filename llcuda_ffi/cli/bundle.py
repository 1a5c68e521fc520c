"""`llcuda-ffi bundle`: the llama.cpp libraries in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .. import bundles
from ..bundles import ensure, own, pins, store
from ..bundles.select import choose_here
from ..errors import BundleError, BundleNotFound, ChecksumError
from ..fetch.progress import megabytes
from . import tune
from .options import examples


@click.group(epilog=examples("bundle list", "bundle install v0.6.0-cpu", "bundle build", "bundle use native"))
def command() -> None:
    """Install, list, check and remove bundles of llama.cpp libraries."""


command.add_command(tune.command, "tune")


@command.command(epilog=examples("bundle install", "bundle install v0.6.0-cpu"))
@click.argument("name", required=False)
@click.option(
    "--variant",
    type=click.Choice(["auto", "cpu", "cuda", "cuda12", "cuda13"]),
    help="The default build's variant; auto and cuda choose by this machine's GPUs and driver.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def install(name: str | None, variant: str | None, quiet: bool) -> None:
    """Install the bundle NAME, or the default one. NAME may also be a folder or archive of an own build."""
    if name is not None and variant is not None:
        raise click.UsageError("give either a NAME or --variant")
    if variant in ("auto", "cuda"):
        choice = choose_here(variant)
        name = choice.bundle
        if choice.note:
            click.echo(choice.note, err=True)
    elif variant is not None:
        name = f"{pins.get(pins.default_name()).llama_cpp}-{variant}"
    click.echo(ensure(name, progress=False if quiet else None).path)


@command.command("list", epilog=examples("bundle list"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_bundles(as_json: bool) -> None:
    """List the known bundles and what is installed."""
    there = {bundle.name: bundle for bundle in store.all_installed()}
    rows = []
    for pin in pins.all_pins():
        bundle = there.pop(pin.name, None)
        rows.append(
            {
                "name": pin.name,
                "default": pin.name == bundles.chosen_name(),
                "llama_cpp": pin.llama_cpp,
                "profile": pin.profile,
                "backend": pin.backend,
                "cuda": pin.cuda,
                "min_glibc": pin.min_glibc,
                "download": pin.size,
                "installed": str(bundle.path) if bundle and store.find(pin) else None,
            }
        )
    for built in there.values():
        rows.append(
            {
                "name": built.name,
                "default": built.name == bundles.chosen_name(),
                "llama_cpp": None,
                "profile": built.profile,
                "backend": built.backend,
                "cuda": None,
                "min_glibc": None,
                "download": None,
                "installed": str(built.path),
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        mark = "*" if row["default"] else " "
        backend = f"cuda {row['cuda']}" if row["cuda"] else row["backend"]
        size = megabytes(int(str(row["download"]))) if row["download"] else ""
        where = row["installed"] or f"not installed ({size} to fetch)"
        click.echo(f"{mark} {row['name']:16} ABI {row['profile']:8} {backend!s:8} {where}")


@command.command(epilog=examples("bundle verify"))
@click.argument("names", nargs=-1)
def verify(names: tuple[str, ...]) -> None:
    """Hash every library of the bundles NAMES, or of all that are installed."""
    there = {bundle.name: bundle for bundle in store.all_installed()}
    damaged = [path.name for path in store.damaged()]
    if not (names or there or damaged):
        click.echo("no bundle is installed: `llcuda-ffi bundle install`", err=True)
    for name in names or (*there, *damaged):
        if name in damaged:
            raise ChecksumError(
                f"bundle {name} is damaged, files are missing or cut: `llcuda-ffi bundle prune {name}`, then install "
                "or build it again"
            )
        if name not in there:
            raise BundleNotFound(f"bundle {name!r} is not installed: `llcuda-ffi bundle install {name}`")
        there[name].verify()
        click.echo(f"{name}: {len(there[name].libraries)} libraries as they were installed")


@command.command(epilog=examples("bundle path"))
@click.argument("name", required=False)
def path(name: str | None) -> None:
    """Print the folder of the bundle NAME, or of the one in use, without installing anything."""
    if name is None:
        name = bundles.chosen_name()
    if own.named(name) is not None or own.is_path(name):
        click.echo(ensure(name, progress=False).path)
        return
    found = store.find(pins.get(name))
    if found is None:
        raise BundleNotFound(f"bundle {name!r} is not installed: `llcuda-ffi bundle install {name}`")
    click.echo(found.path)


@command.command(epilog=examples("bundle prune b7698-cpu"))
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove every bundle.")
def prune(names: tuple[str, ...], everything: bool) -> None:
    """Remove the bundles NAMES, or what is damaged, outdated, unfinished or an own build's copy."""
    for entry in store.prune(names, everything=everything):
        click.echo(f"removed {entry}")


@command.command(epilog=examples("bundle use v0.6.0-cpu", "bundle use --auto"))
@click.argument("name", required=False)
@click.option("--auto", is_flag=True, help="Let this machine decide again.")
def use(name: str | None, auto: bool) -> None:
    """Have the bundle NAME used when none is named: a known one, or one that `bundle build` made."""
    if (name is None) != auto:
        raise click.UsageError("give a NAME, or --auto")
    bundles.use(name)
    click.echo(f"in use: {bundles.chosen_name()}")


@command.command(epilog=examples("bundle build", "bundle build --cuda-arch 90"))
@click.argument("source", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", default="native", show_default=True, help="What the bundle is used by.")
@click.option("--cuda-arch", help="CUDA architectures, as 75;86;90. Default: those of the GPUs here, where nvcc is.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Files compiled at once. Default: by cores and memory.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def build(source: Path | None, name: str, cuda_arch: str | None, jobs: int | None, quiet: bool) -> None:
    """Build llama.cpp for this machine, from the pinned source or the tree in the folder SOURCE (docs/build.md)."""
    from ..bundles.build import build as make

    progress = False if quiet else None
    click.echo(make(name, source, cuda_arch=cuda_arch, jobs=jobs, progress=progress).path)


@command.command(epilog=examples("bundle pack ./build -o own.tar.gz"))
@click.argument("build", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The archive to write."
)
def pack(build: Path, output: Path) -> None:
    """Pack the libraries of the llama.cpp build in the folder BUILD into an archive to use as a bundle."""
    from ..bundles.pack import pack as make

    try:
        facts = make(build, output)
    except OSError as error:
        raise BundleError(f"{output} cannot be written ({error.strerror or error})") from error
    click.echo(output)
    click.echo(f"ABI profile {facts['profile']}, {facts['backend']}, {len(facts['libraries'])} libraries", err=True)
