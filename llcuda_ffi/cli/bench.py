"""`llcuda-ffi bench`: how fast a model computes on this machine, in one line."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

import click

from .options import ModelReference, examples, model_options, pick_model, split_model_options


@click.command(epilog=examples("bench", "bench ./model.gguf --kv-type q8_0 --threads 8 --json"))
@click.argument("model", required=False, type=ModelReference())
@model_options
@click.option(
    "-p", "--prompt-tokens", type=click.IntRange(2), default=512, show_default=True, help="Length of the prompt."
)
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens to generate.")
@click.option(
    "-r", "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs to take the median of."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str | None,
    model_option: str | None,
    prompt_tokens: int,
    max_tokens: int,
    rounds: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure one stream of MODEL: tokens per second of the prompt, and of the answer (greedy), after a warm-up."""
    from ..llama import Llama
    from .options import use_adapters

    settings, adapters = split_model_options(given)
    settings["n_ctx"] = settings["n_ctx"] or prompt_tokens + max_tokens
    with Llama(pick_model(model, model_option), n_parallel=1, prefix_cache=False, **settings) as llm:
        use_adapters(llm, adapters)
        # the same few tokens over and over: what they are does not change how long they take
        prompt = [token % llm.vocab.n_tokens for token in range(100, 100 + prompt_tokens)]
        runs = []
        for _ in range(rounds + 1):
            done = llm.generate(prompt, max_tokens=max_tokens, temperature=0, ignore_eos=True)
            runs.append((prompt_tokens / done.timings.prompt_s, done.timings.tokens_per_s))
        library = llm.model.library
        result = {
            "model": llm.model.path.name,
            "prompt_tokens": prompt_tokens,
            "generated_tokens": max_tokens,
            "prompt_tokens_per_s": median(rate for rate, _ in runs[1:]),
            "generated_tokens_per_s": median(rate for _, rate in runs[1:]),
            "bundle": library.bundle.name,
            "cpu_variant": library.cpu_variant,
            "placement": str(llm.model.placement),
        }
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{result['model']}: prompt {result['prompt_tokens_per_s']:.0f} tokens/s, "
        f"answer {result['generated_tokens_per_s']:.1f} tokens/s "
        f"({prompt_tokens} and {max_tokens} tokens, median of {rounds}; bundle {result['bundle']}, "
        f"CPU variant {result['cpu_variant']})"
    )
