"""`llcuda-ffi embed`: a file of texts to a file of vectors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click
import numpy as np

from .options import ModelReference, examples


@click.command(
    epilog=examples("embed texts.txt vectors.npy", "embed rows.jsonl vectors.parquet --column body --truncate")
)
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "-m", "--model", type=ModelReference(), default="all-minilm-l6-v2", show_default=True, help="A path or a name."
)
@click.option("--column", default="text", show_default=True, help="The column with the text; not for .txt.")
@click.option("--prompt", help="A text put before each text.")
@click.option("--prompt-name", help="The name of one of the model's prompts instead, such as query or document.")
@click.option("--dim", type=click.IntRange(1), help="Keep so many numbers of each vector (Matryoshka models).")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long; otherwise they are errors.")
@click.option("--no-normalize", is_flag=True, help="Leave the vectors' length as it is.")
@click.option("--float16", is_flag=True, help="Half the size.")
@click.option("--batch-tokens", type=click.IntRange(1), help="Tokens computed together.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-ngl", "--n-gpu-layers", type=int, help="Layers on the GPU; by default as many as fit.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each context; by default one, on every core.")
@click.option("--part-rows", type=click.IntRange(1), default=2048, show_default=True, help="Rows kept together.")
@click.option("--restart", is_flag=True, help="Forget what an interrupted run did.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(
    source: Path,
    target: Path,
    model: str,
    column: str,
    prompt: str | None,
    prompt_name: str | None,
    dim: int | None,
    truncate: bool,
    no_normalize: bool,
    float16: bool,
    batch_tokens: int | None,
    device: str,
    n_gpu_layers: int | None,
    threads: int | None,
    part_rows: int,
    restart: bool,
    quiet: bool,
) -> None:
    """Embed each row of SOURCE (.txt, .jsonl, .csv, .parquet) into TARGET (.npy, .parquet).

    A run that was killed continues where it was when it is started again. Rows that fail become NaN, and
    TARGET.errors.jsonl says why.
    """
    from ..embedder import Embedder
    from ..pipelines.files import embed_file

    layers: int | Literal["auto"] = "auto" if n_gpu_layers is None else n_gpu_layers
    with Embedder(model, device=device, n_gpu_layers=layers, n_threads=threads, batch_tokens=batch_tokens) as embedder:
        done = embed_file(
            embedder,
            source,
            target,
            column=column,
            part_rows=part_rows,
            restart=restart,
            show_progress=not quiet,
            truncate=truncate,
            prompt=prompt,
            prompt_name=prompt_name,
            dim=dim,
            normalize=not no_normalize,
            dtype=np.dtype(np.float16 if float16 else np.float32),
        )
    before = f", {done.resumed} of them by an earlier run" if done.resumed else ""
    click.echo(f"{done.rows} rows{before}, {done.failed} failed", err=True)
    if done.errors is not None:
        click.echo(f"errors: {done.errors}", err=True)
        click.echo(done.path)
        sys.exit(3)
    click.echo(done.path)
