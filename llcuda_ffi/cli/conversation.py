"""A conversation in the terminal, and the commands that act on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ContextOverflow, InvalidRequest, LlcudaError

if TYPE_CHECKING:
    from ..chat.results import ChatCompletion
    from ..llama import Llama

HELP = """\
/system TEXT     set the system text (without TEXT: show it)
/reset           forget the conversation, keep the system text
/regenerate      answer the last message again
/undo            take back the last message and its answer
/history         show the conversation
/prompt          show the prompt as the model would see it
/params [K=V …]  show or change settings: temperature=0.2 seed=1 max_tokens=none
/image FILE      show an image with the next message (--mmproj)
/save FILE       write the conversation as JSON
/load FILE       read it back
/help            this text
/quit            leave (also Ctrl-D)
Pasted lines are one message; Alt-Enter begins a new line; the arrow keys bring back earlier messages.
From a file or a pipe each line is a message: one that ends with \\ goes on, a line of \"\"\" begins and ends several.
Ctrl-C stops the answer, not the program."""


COMMANDS = (
    "help",
    "history",
    "image",
    "load",
    "params",
    "prompt",
    "quit",
    "regenerate",
    "reset",
    "save",
    "system",
    "undo",
)


class Conversation:
    """A conversation and what is done with it."""

    def __init__(self, llm: Llama, system: str | None, settings: dict[str, Any], options: dict[str, Any]) -> None:
        self.llm, self.settings, self.options = llm, settings, options
        self.messages: list[dict[str, Any]] = []
        self.images: list[str] = []
        if system:
            self.messages.append({"role": "system", "content": system})
        self.failed = False

    # --- talking ---

    def say(self, text: str) -> None:
        """Answer a message."""
        content: Any = text
        if self.images:
            content = [{"type": "image", "image": image} for image in self.images] + [{"type": "text", "text": text}]
            self.images = []
        self.messages.append({"role": "user", "content": content})
        self.answer()

    def _failed(self, error: Exception) -> None:
        self.failed = True
        click.secho(f"error: {error}", fg="red", err=True)

    def show(self, image: str) -> None:
        """Show an image, a file, with the next message."""
        if self.llm.media is None:
            raise InvalidRequest("this model sees nothing: give its projector, --mmproj FILE")
        self.llm.media.read("image", Path(image))
        self.images.append(image)

    def answer(self) -> None:
        """Stream the answer to the last message; on an error the message is taken back.

        A conversation that no longer fits the context loses its oldest turns, with a word about it.
        """
        before, left_out = list(self.messages), 0
        while True:
            try:
                self._answer()
                break
            except ContextOverflow as error:
                dropped = self._drop_oldest_turn()
                if not dropped:
                    self.messages = before[:-1]
                    self._failed(error)
                    return
                left_out += dropped
        if left_out:
            click.secho(f"(the {left_out} oldest messages no longer fitted and were forgotten)", dim=True, err=True)

    def _drop_oldest_turn(self) -> int:
        """Forget the oldest message of the user and what answered it, never the last one; returns how many."""
        first = 1 if self.messages and self.messages[0]["role"] == "system" else 0
        users = [i for i, message in enumerate(self.messages) if i >= first and message["role"] == "user"]
        if len(users) < 2:
            return 0
        del self.messages[first : users[1]]
        return users[1] - first

    def _answer(self) -> None:
        shown, done, stopped = "", None, False
        thinking = False
        stream = None
        try:
            stream = self.llm.chat_stream(self.messages, **self.settings, **self.options)
            for chunk in stream:
                if chunk.reasoning_content:
                    if not thinking:
                        click.secho("(thinking)", dim=True, err=True)
                    thinking = True
                    click.secho(chunk.reasoning_content, nl=False, dim=True, err=True)
                if chunk.content:
                    if thinking:
                        click.echo(err=True)
                        thinking = False
                    shown += chunk.content  # first: Ctrl-C may come while it is written
                    click.echo(chunk.content, nl=False)
                done = chunk.completion or done
        except KeyboardInterrupt:
            stopped = True
        except ContextOverflow:
            raise
        except LlcudaError as error:
            self.messages.pop()
            self._failed(error)
            return
        finally:
            if stream is not None:
                stream.close()  # type: ignore[attr-defined]
        click.echo()
        if done is not None:
            self.messages.append(done.message.to_dict())
            self.report(done)
        else:
            self.messages.append({"role": "assistant", "content": shown})
            if stopped:
                click.secho("(stopped)", dim=True, err=True)

    def report(self, done: ChatCompletion) -> None:
        """A line about tokens and speed, and a word where there is nothing to read."""
        if not done.text.strip():
            thought = "it only thought: raise max_tokens" if done.message.reasoning_content else "try /regenerate"
            click.secho(f"(the answer is empty; {thought})", dim=True, err=True)
        usage, timings = done.usage, done.timings
        new = usage.prompt_tokens - usage.cached_tokens
        line = f"({usage.completion_tokens} tokens, {timings.tokens_per_s:.1f} tokens/s; {new} of {usage.prompt_tokens}"
        line += f" prompt tokens computed in {timings.prompt_s:.2f} s"
        line += ", cut by max_tokens)" if done.finish_reason == "length" else ")"
        click.secho(line, dim=True, err=True)

    # --- commands ---

    def command(self, line: str) -> bool:
        """Run a /command; returns False to leave."""
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit", "q"):
            return False
        action = getattr(self, f"do_{name}", None)
        if action is None:
            click.echo(f"no command /{name}: /help lists them", err=True)
            return True
        try:
            action(rest)
        except (LlcudaError, OSError, ValueError, RecursionError) as error:
            self._failed(error)
        return True

    def do_help(self, rest: str) -> None:
        click.echo(HELP, err=True)

    def do_system(self, rest: str) -> None:
        has = bool(self.messages) and self.messages[0]["role"] == "system"
        if not rest:
            click.echo(self.messages[0]["content"] if has else "(no system text)", err=True)
            return
        message = {"role": "system", "content": rest}
        self.messages[: 1 if has else 0] = [message]

    def do_reset(self, rest: str) -> None:
        self.messages = [m for m in self.messages[:1] if m["role"] == "system"]

    def do_undo(self, rest: str) -> None:
        while self.messages and self.messages[-1]["role"] != "user":
            if self.messages[-1]["role"] == "system":
                return
            self.messages.pop()
        if self.messages:
            self.messages.pop()

    def do_regenerate(self, rest: str) -> None:
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages or self.messages[-1]["role"] != "user":
            raise InvalidRequest("there is nothing to answer again")
        if self.settings.get("seed") is not None:
            self.settings["seed"] += 1  # the same seed would give the same answer
        self.answer()

    def do_history(self, rest: str) -> None:
        for message in self.messages:
            click.secho(f"{message['role']}:", bold=True, nl=False)
            click.echo(f" {message.get('content') or ''}")

    def do_prompt(self, rest: str) -> None:
        if not self.messages:
            raise InvalidRequest("the conversation is empty")
        click.echo(self.llm.chat_prompt(self.messages, **self.options))

    def do_image(self, rest: str) -> None:
        self.show(rest)

    def do_params(self, rest: str) -> None:
        from ..params import override
        from ..sampling_params import SamplingParams

        changed = dict(self.settings)
        for pair in rest.split():
            key, equals, value = pair.partition("=")
            if not equals:
                raise InvalidRequest(f"/params takes NAME=VALUE, not {pair!r}")
            changed[key] = None if value.lower() == "none" else _value(value)
        override(SamplingParams(), changed)  # refuses what is wrong before it is kept
        self.settings = changed
        click.echo(" ".join(f"{k}={v}" for k, v in sorted(self.settings.items())), err=True)

    def do_save(self, rest: str) -> None:
        if not rest:
            raise InvalidRequest("/save takes a file name")
        Path(rest).write_text(json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1), encoding="utf-8")
        click.echo(f"{len(self.messages)} messages in {rest}", err=True)

    def do_load(self, rest: str) -> None:
        if not rest:
            raise InvalidRequest("/load takes a file name")
        from ..chat.messages import normalize

        read = json.loads(Path(rest).read_text(encoding="utf-8"))
        self.messages = normalize(read["messages"] if isinstance(read, dict) and "messages" in read else read)
        click.echo(f"{len(self.messages)} messages from {rest}", err=True)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
