"""`llcuda-ffi chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from .conversation import COMMANDS, Conversation
from .messages import message_reader
from .options import ModelReference, model_options, pick_model, sampling_options, split_options, use_adapters


@click.command(
    epilog="""\b
Examples:
  llcuda-ffi chat
  llcuda-ffi chat qwen-2.5-1.5b-Q4_K_M -s "Answer in one sentence." -t 0.2
  echo "What is a llama?" | llcuda-ffi chat ./model.gguf
"""
)
@click.argument("model", required=False, type=ModelReference())
@model_options
@sampling_options
@click.option("-s", "--system", help="The system text.")
@click.option("--image", multiple=True, help="An image that goes with the first message; may be repeated (--mmproj).")
@click.option("--template", help="A built-in chat template's name, or a Jinja file.")
@click.option("--no-think", is_flag=True, help="Ask a reasoning model's template not to think (enable_thinking).")
def command(
    model: str | None,
    model_option: str | None,
    system: str | None,
    image: tuple[str, ...],
    template: str | None,
    no_think: bool,
    **given: Any,
) -> None:
    """Talk with a model. In a terminal /help lists the commands; else each line of standard input is a message."""
    from ..llama import Llama
    from ..sampling_params import SamplingParams

    settings, sampling, adapters = split_options(given)
    source = click.get_current_context().get_parameter_source("max_tokens")
    if source is not None and source.name == "DEFAULT":
        sampling["max_tokens"] = None  # an answer ends where the model ends it
    SamplingParams(**sampling)
    options: dict[str, Any] = {}
    if template is not None:
        # os.path, unlike Path, also answers for a template that is too long for a name
        is_file = os.path.isfile(template)
        options["template"] = Path(template).read_text(encoding="utf-8") if is_file else template
    if no_think:
        options["chat_template_kwargs"] = {"enable_thinking": False}
    with Llama(pick_model(model, model_option), n_parallel=1, **settings) as llm:
        use_adapters(llm, adapters)
        conversation = Conversation(llm, system, sampling, options)
        for file in image:
            conversation.show(file)
        if sys.stdin.isatty():
            click.secho(f"{llm.model.path.name}, {llm.n_ctx} tokens of context. /help lists the commands.", err=True)
        read = message_reader(COMMANDS)
        while True:
            try:
                message = read()
            except KeyboardInterrupt:
                click.echo("(Ctrl-D or /quit leaves)", err=True)
                continue
            if message is None or (message.startswith("/") and not conversation.command(message)):
                break
            if message.strip() and not message.startswith("/"):
                conversation.say(message)
        if conversation.failed and not sys.stdin.isatty():
            sys.exit(1)
