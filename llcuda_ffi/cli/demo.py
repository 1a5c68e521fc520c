"""`llcuda-ffi demo`: real text from a real model, and one line that says how fast."""

from __future__ import annotations

import click

from .options import examples

QUESTION = "What is a llama, and where does it live?"


@click.command(epilog=examples("demo", "demo -n 32"))
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Most tokens to generate."
)
def command(max_tokens: int) -> None:
    """Stream an answer of SmolLM2-135M. Fetches the libraries (11 MB) and the model (93 MB) when they are missing."""
    from ..llama import Llama

    # one request at a time needs one sequence; a short context starts faster
    with Llama("smollm2-135m", n_parallel=1, n_ctx=1024) as llm:
        click.echo(f">>> {QUESTION}", err=True)
        done = None
        for chunk in llm.chat_stream(
            [{"role": "user", "content": QUESTION}], max_tokens=max_tokens, temperature=0.6, seed=42
        ):
            click.echo(chunk.content, nl=False)
            done = chunk.completion
        click.echo()
        assert done is not None
        library = llm.model.library
        click.echo(
            f"[{done.timings.tokens_per_s:.0f} tokens/s, {done.usage.completion_tokens} tokens · "
            f"{llm.model.path.name} · bundle {library.bundle.name} · CPU variant {library.cpu_variant}; "
            "go on with `llcuda-ffi chat`]",
            err=True,
        )
