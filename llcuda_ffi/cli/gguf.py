"""`llcuda-ffi gguf`: what is in a GGUF file, and whether libllama can take it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from .. import hub
from ..errors import ModelNotFound
from ..fetch.progress import megabytes
from ..gguf import GGUFReader, check
from .options import ModelReference, examples

SHOWN = 5  # items of an array, unless --all


@click.group(epilog=examples("gguf check model.gguf"))
def command() -> None:
    """Look into GGUF files."""


def _path(file: str) -> str:
    """A file by its path, or by the name of a model that is in the cache.

    Raises:
        ModelNotFound: there is none.
    """
    if Path(file).exists():
        return file
    there = hub.cached(file)
    if there is None:
        raise ModelNotFound(f"{file} is not in the cache: `llcuda-ffi model pull {file}`")
    return str(there)


@command.command(epilog=examples("gguf info smollm2-135m", "gguf info ./model.gguf --tensors"))
@click.argument("file", type=ModelReference())
@click.option("--json", "as_json", is_flag=True, help="Print JSON, arrays in full.")
@click.option("--tensors", is_flag=True, help="List the tensors too.")
def info(file: str, as_json: bool, tensors: bool) -> None:
    """Show the metadata of FILE: a path, or a model that was fetched, by its name."""
    with GGUFReader(_path(file)) as reader:
        if as_json:
            click.echo(json.dumps(_facts(reader, tensors), indent=1))
            return
        size = sum(tensor.nbytes for tensor in reader.tensors.values())
        click.echo(
            f"{reader.path.name}: GGUF v{reader.version}, {reader.byte_order}-endian, "
            f"{len(reader.tensors)} tensors of {megabytes(size)}"
        )
        for key in reader.metadata:
            field = reader.metadata.field(key)
            kind = field.kind if field else ""
            click.echo(f"{_name(key):<44} {kind:<16} {_short(reader.metadata[key])}")
        if tensors:
            for tensor in reader.tensors.values():
                shape = " x ".join(map(str, tensor.shape))
                click.echo(f"{_name(tensor.name):<44} {tensor.ggml_type.name:<16} {shape}")


@command.command("check", epilog=examples("gguf check ./model.gguf", "gguf check ./model.gguf --json"))
@click.argument("file", type=ModelReference())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_file(file: str, as_json: bool) -> None:
    """Check FILE as every load does: exit code 1 and the reason where libllama could not take it."""
    report = check(_path(file))
    if as_json:
        facts = asdict(report)
        facts["path"] = str(report.path)
        click.echo(json.dumps(facts, indent=1))
        return
    types = ", ".join(f"{n} {kind}" for kind, n in sorted(report.types.items(), key=lambda item: -item[1]))
    click.echo(f"{report.path.name}: sound. {_name(report.architecture) or 'no architecture'}")
    click.echo(f"{report.n_params:,} weights in {megabytes(report.n_bytes)}, {report.n_vocab:,} tokens")
    click.echo(f"tensors: {types or 'none'}")


def _facts(reader: GGUFReader, tensors: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "path": str(reader.path),
        "version": reader.version,
        "byte_order": reader.byte_order,
        "alignment": reader.alignment,
        "metadata": {key: _plain(value) for key, value in reader.metadata.items()},
    }
    if tensors:
        facts["tensors"] = [
            {
                "name": tensor.name,
                "type": tensor.ggml_type.name,
                "shape": list(tensor.shape),
                "offset": tensor.offset,
                "nbytes": tensor.nbytes,
            }
            for tensor in reader.tensors.values()
        ]
    return facts


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)  # JSON has no word for it
    return value


def _name(text: str) -> str:
    """A key from a file that may hold anything: nothing that a terminal obeys."""
    return text if text.isprintable() else repr(text)


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray | list):
        items = ", ".join(_short(item) for item in value[:SHOWN])
        return f"[{items}{', ...' if len(value) > SHOWN else ''}] ({len(value)})"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
