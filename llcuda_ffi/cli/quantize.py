"""llcuda-ffi quantize: a model file with smaller weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidRequest
from ..fetch.progress import Progress
from ..hub.references import resolve
from ..quantization.files import Quantized, QuantizePlan, plan_quantize, quantize
from .options import ModelReference, examples

_MB = 1e6


@click.command(
    epilog=examples("quantize model-f16.gguf model-q4.gguf -t Q4_K_M", "quantize model-f16.gguf -t Q8_0 --dry-run")
)
@click.argument("source", type=ModelReference())
@click.argument("target", required=False, type=click.Path(path_type=Path))
@click.option("--type", "-t", "ftype", default="Q4_K_M", show_default=True, help="File type: Q4_K_M, Q8_0, IQ4_XS, …")
@click.option("--tensor-type", multiple=True, metavar="REGEX=TYPE", help="Type of tensors whose names match.")
@click.option("--output-type", help="Type of the output matrix.")
@click.option("--embedding-type", help="Type of the token embeddings.")
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix (GGUF, of llama-imatrix).")
@click.option("--allow-requantize", is_flag=True, help="Also quantize weights that are quantized already.")
@click.option("--pure", is_flag=True, help="Every matrix gets the file type's own type.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: the usable cores.")
@click.option("--dry-run", is_flag=True, help="Only say how large it would be.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    source: str,
    target: Path | None,
    ftype: str,
    tensor_type: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    imatrix: Path | None,
    allow_requantize: bool,
    pure: bool,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a quantized copy of SOURCE (a path or a model's name) to TARGET."""
    if (target is None) != dry_run:
        raise click.UsageError("give TARGET, or --dry-run without it")
    options: dict[str, Any] = {
        "tensor_types": dict(_pairs(tensor_type)) or None,
        "output_type": output_type,
        "embedding_type": embedding_type,
        "imatrix": imatrix,
        "allow_requantize": allow_requantize,
        "pure": pure,
        "n_threads": threads,
    }
    path = resolve(source)
    if target is None:
        _report(plan_quantize(path, ftype, **options), as_json)
        return
    with Progress("", 100, None, unit="%") as shows:
        done = quantize(path, target, ftype, progress=lambda share: shows.at(int(share * 100)), **options)
    _report(done, as_json)


def _pairs(values: Iterable[str]) -> Iterable[tuple[str, str]]:
    for value in values:
        pattern, equals, kind = value.rpartition("=")
        if not equals:
            raise InvalidRequest(f"--tensor-type is REGEX=TYPE, not {value!r}")
        yield pattern, kind


def _report(plan: QuantizePlan, as_json: bool) -> None:
    counts: dict[str, int] = {}
    for kind in plan.types.values():
        counts[kind.name] = counts.get(kind.name, 0) + 1
    if as_json:
        data: dict[str, object] = {
            "type": plan.ftype.name,
            "tensor_bytes": plan.tensor_bytes,
            "source_bytes": plan.source_bytes,
            "bits_per_weight": plan.bits_per_weight,
            "types": counts,
            "needs_imatrix": plan.needs_imatrix,
        }
        if isinstance(plan, Quantized):
            data |= {"path": str(plan.path), "file_bytes": plan.file_bytes, "seconds": plan.seconds}
        click.echo(json.dumps(data))
        return
    kinds = ", ".join(f"{n} × {kind}" for kind, n in sorted(counts.items(), key=lambda item: -item[1]))
    click.echo(
        f"{plan.ftype.name}: {plan.source_bytes / _MB:.1f} MB -> {plan.tensor_bytes / _MB:.1f} MB, "
        f"{plan.bits_per_weight:.2f} bits per weight ({kinds})"
    )
    if isinstance(plan, Quantized):
        click.echo(f"{plan.path}: {plan.file_bytes / _MB:.1f} MB in {plan.seconds:.1f} s")
    elif plan.needs_imatrix:
        click.echo("this type needs an importance matrix: --imatrix", err=True)
