"""`llcuda-ffi model convert`: a Hugging Face folder to a GGUF file."""

from __future__ import annotations

from pathlib import Path

import click

from .options import examples


@click.command("convert", epilog=examples("model convert ./all-MiniLM-L6-v2 -o minilm.gguf --type q8_0"))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The GGUF file to write.")
@click.option("--type", "kind", default="q8_0", show_default=True, help="f32, f16, bf16, q8_0, Q4_K_M, …")
def command(folder: Path, output: Path, kind: str) -> None:
    """Convert a Hugging Face model FOLDER; the result is loaded once before it is put in place."""
    from ..conversion.hugging_face import convert

    click.echo(convert(folder, output, kind))
