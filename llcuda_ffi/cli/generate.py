"""`llcuda-ffi generate`: text from a model, to standard output; or a file of prompts to a file of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

_SAMPLING = (
    click.option("-n", "--max-tokens", type=int, default=128, show_default=True, help="Most tokens to generate."),
    click.option("-t", "--temperature", type=float, default=0.8, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=40, show_default=True),
    click.option("--top-p", type=float, default=0.95, show_default=True),
    click.option("--min-p", type=float, default=0.05, show_default=True),
    click.option("--repeat-penalty", type=float, default=1.0, show_default=True),
    click.option("--seed", type=int, default=None, help="The same seed gives the same text."),
    click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated."),
    click.option("--grammar", type=click.File("r"), default=None, help="A GBNF grammar file."),
)


def sampling_options(command: Any) -> Any:
    """The options that become SamplingParams."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


def model_options(command: Any) -> Any:
    """The options that become arguments of Llama."""
    for option in reversed(
        (
            click.option(
                "-m",
                "--model",
                default="smollm2-135m",
                show_default=True,
                help="Path, registry name, repo:file.gguf or hf://repo/file@revision.",
            ),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
            click.option("-c", "--ctx", "n_ctx", type=int, default=None, help="Most tokens of prompt and answer."),
            click.option("--threads", type=int, default=None, help="CPU threads; by default they adapt."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("prompt", required=False)
@model_options
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@click.option(
    "-f",
    "--file",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Prompts, one JSON object a line: {"prompt": "…", …settings}; or a JSON string a line.',
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Results of --file, JSON lines.")
@click.option("--parallel", type=int, default=None, help="Requests computed together (default 1, with --file 8).")
def command(
    prompt: str | None,
    model: str,
    device: str,
    n_ctx: int | None,
    threads: int | None,
    as_json: bool,
    source: Path | None,
    output: Path | None,
    parallel: int | None,
    **sampling: Any,
) -> None:
    """Continue PROMPT ("-" reads it from standard input), streaming the text."""
    from ..llama import Llama
    from ..sampling_params import SamplingParams
    from .prompts import run_file, to_json

    if (prompt is None) == (source is None):
        raise click.UsageError("give a PROMPT, or --file with --output")
    if (source is None) != (output is None):
        raise click.UsageError("--file and --output go together")
    if source is not None and output is not None and output.exists() and output.samefile(source):
        raise click.UsageError("--output is the file of prompts itself: give another name")
    if sampling["grammar"] is not None:
        sampling["grammar"] = sampling["grammar"].read()
    params = SamplingParams(**{**sampling, "stop": tuple(sampling["stop"])})
    if prompt == "-":
        prompt = sys.stdin.read()
    settings: dict[str, Any] = {"device": device, "n_ctx": n_ctx, "n_threads": threads or "auto"}
    if source is not None and output is not None:
        with Llama(model, n_parallel=parallel or 8, **settings) as llm:
            run_file(llm, source, output, params)
        return
    assert prompt is not None
    with Llama(model, n_parallel=parallel or 1, **settings) as llm:
        if as_json:
            click.echo(json.dumps(to_json(llm.generate(prompt, params)), ensure_ascii=False))
            return
        completion = None
        try:
            for chunk in llm.stream(prompt, params):
                click.echo(chunk.text, nl=False)
                completion = chunk.completion
        finally:
            click.echo()
        if completion is not None and completion.finish_reason == "length":
            click.echo(f"(stopped after {completion.usage.completion_tokens} tokens: --max-tokens)", err=True)
