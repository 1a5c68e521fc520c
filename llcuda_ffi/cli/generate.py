"""`llcuda-ffi generate`: text from a model, to standard output; or a file of prompts to a file of results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .options import model_options, pick_model, sampling_options, split_options, use_adapters


@click.command(
    epilog="""\b
Examples:
  llcuda-ffi generate "Once upon a time" -n 64
  llcuda-ffi generate "A colour:" --json-schema '{"enum": ["red", "green", "blue"]}'
  llcuda-ffi generate --file prompts.jsonl -o results.jsonl -m ./model.gguf
  cat prompt.txt | llcuda-ffi generate - --json
"""
)
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
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help='Results of --file, JSON lines; "-" is standard output.',
)
@click.option("--parallel", type=click.IntRange(1), help="Requests computed together (default 1, with --file 8).")
def command(
    prompt: str | None,
    model_option: str | None,
    as_json: bool,
    source: Path | None,
    output: Path | None,
    parallel: int | None,
    **given: Any,
) -> None:
    """Continue PROMPT ("-" reads it from standard input), streaming the text.

    A model that was trained for conversations answers better in `llcuda-ffi chat`: there its template is used.
    """
    from ..llama import Llama
    from ..sampling_params import SamplingParams
    from .prompts import run_file

    if (prompt is None) == (source is None):
        raise click.UsageError("give a PROMPT, or --file with --output")
    if source is not None and not source.is_file():
        raise click.UsageError(f"--file is read twice, and {source} is a pipe or a device: write the prompts to a file")
    if source is not None and output is None:
        raise click.UsageError('--file wants --output: a file for the results, or "-" for standard output')
    if source is None and output is not None:
        raise click.UsageError("--output is for --file; the text of one PROMPT goes to standard output: use `> FILE`")
    if source is not None and output is not None and output.exists() and output.samefile(source):
        raise click.UsageError("--output is the file of prompts itself: give another name")
    settings, sampling, adapters = split_options(given)
    params = SamplingParams(**sampling)
    if prompt == "-":
        prompt = sys.stdin.read()
    with Llama(pick_model(None, model_option), n_parallel=parallel or (8 if source else 1), **settings) as llm:
        use_adapters(llm, adapters)
        if source is not None and output is not None:
            failed = run_file(llm, source, output, params)
            if failed:
                sys.exit(1)
        elif prompt is not None:
            _print(llm, prompt, params, as_json)


def _print(llm: Any, prompt: str, params: Any, as_json: bool) -> None:
    if as_json:
        from .prompts import encoded

        click.echo(encoded(llm.generate(prompt, params).to_json()))
        return
    completion = None
    blank, begun = True, False
    try:
        for chunk in llm.stream(prompt, params):
            begun = True
            click.echo(chunk.text, nl=False)
            blank = blank and not chunk.text.strip()
            completion = chunk.completion
    finally:
        if begun:
            click.echo()
    if completion is None:
        return
    if blank:
        why = "ended at once" if completion.finish_reason == "eog" else "wrote only blanks"
        chats = llm.model.chat_template() is not None
        hint = "it was trained for conversations: try `llcuda-ffi chat`" if chats else "try another prompt or seed"
        click.echo(f"(the model {why}: {hint})", err=True)
    elif completion.finish_reason == "length":
        click.echo(f"(stopped after {completion.usage.completion_tokens} tokens: --max-tokens)", err=True)
