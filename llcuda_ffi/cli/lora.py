"""llcuda-ffi lora: adapters of peft and Unsloth, converted and merged."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InvalidRequest
from ..hub.references import resolve
from ..lora import convert, merge
from .options import ModelReference, examples

_FOLDER = click.Path(path_type=Path)


@click.group(epilog=examples("lora convert ./my-peft-folder base.gguf adapter.gguf"))
def command() -> None:
    """LoRA adapters of peft and Unsloth."""


@command.command("convert", epilog=examples("lora convert ./my-peft-folder base.gguf adapter.gguf"))
@click.argument("adapter", type=_FOLDER)
@click.argument("base", type=ModelReference())
@click.argument("target", type=_FOLDER)
@click.option("--f16", is_flag=True, help="Half the size.")
def convert_command(adapter: Path, base: str, target: Path, f16: bool) -> None:
    """Turn the folder ADAPTER into the GGUF adapter TARGET for the model BASE."""
    click.echo(convert(adapter, resolve(base), target, dtype="float16" if f16 else "float32"))


@command.command("merge", epilog=examples("lora merge base.gguf adapter.gguf:0.8 -o merged.gguf"))
@click.argument("base", type=ModelReference())
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER[:SCALE]...")
@click.option("--output", "-o", required=True, type=_FOLDER, help="The model file to write.")
@click.option("--type", "-t", "ftype", help="Quantize the result to this file type.")
def merge_command(base: str, adapters: tuple[str, ...], output: Path, ftype: str | None) -> None:
    """Write the model BASE with the ADAPTERs merged into it (folders of peft, or GGUF adapters)."""
    click.echo(merge(resolve(base), dict(map(_scaled, adapters)), output, ftype))


def _scaled(text: str) -> tuple[str, float]:
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:
        raise InvalidRequest(f"an adapter is PATH or PATH:SCALE, not {text!r}") from None
