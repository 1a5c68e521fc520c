"""The commands below `llcuda-ffi`. Each lives in a module of its own, imported when it is run."""

from __future__ import annotations

import importlib
import re
import sys

import click

from ..errors import LlcudaError
from ..keywords import nearest

# command → module below this package; the module's `command` is the click command
COMMANDS = {
    "bench": "bench",
    "bundle": "bundle",
    "cache": "cache",
    "chat": "chat",
    "demo": "demo",
    "doctor": "doctor",
    "embed": "embed",
    "generate": "generate",
    "gguf": "gguf",
    "lora": "lora",
    "model": "model",
    "quantize": "quantize",
    "serve": "serve",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found: click.Command = importlib.import_module(f".{module}", __package__).command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = nearest(args[0], COMMANDS)
            if not near or "mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(near)}?", ctx) from None


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llcuda-ffi")
def _root() -> None:
    """Run GGUF models through libllama in this process: try `llcuda-ffi chat`.

    \b
    Examples:
      llcuda-ffi demo
      llcuda-ffi chat
      llcuda-ffi generate "Once upon a time"
      llcuda-ffi serve smollm2-135m
    \b
    Exit codes: 0 done; 1 an error (one line on stderr), or some prompts of a file or pipe failed;
    2 bad usage; 3 some rows of `embed` failed; 130 Ctrl-C.
    \b
    Completion of commands, options and model names in the shell:
      bash: eval "$(_LLCUDA_FFI_COMPLETE=bash_source llcuda-ffi)"
      zsh:  eval "$(_LLCUDA_FFI_COMPLETE=zsh_source llcuda-ffi)"
      fish: _LLCUDA_FFI_COMPLETE=fish_source llcuda-ffi | source
    """


def _in_flags(message: str, arguments: list[str]) -> str:
    """An error message that names the flags of the command that ran where it named settings: n_ctx → --ctx."""
    from .options import flags_of

    command: click.Command = _root
    for argument in arguments:
        if isinstance(command, click.Group):
            command = _subcommand(command, argument) or command
    flags = flags_of(command)
    if not flags:
        return message
    # whole words that are no ordinary ones: with an underscore, or followed by "="
    words = "|".join(map(re.escape, sorted(flags, key=len, reverse=True)))

    def flag(found: re.Match[str]) -> str:
        name, equals = found[1], found[2]
        return f"{flags[name]} " if equals else flags[name] if "_" in name else name

    named = re.sub(rf"(?<![\w\-./`'\"])({words})(=?)(?![\w/])", flag, message)
    return re.sub(r"(--[\w-]+) \(serve \1\)", r"\1", named)


def _subcommand(group: click.Group, name: str) -> click.Command | None:
    return group.get_command(click.Context(group), name)


def run() -> None:
    """Run the command that `sys.argv` names; what goes wrong is told on stderr.

    Raises:
        SystemExit: it did not succeed.
    """
    try:
        _root.main(prog_name="llcuda-ffi", standalone_mode=False)
    except click.exceptions.Abort:  # what click makes of Ctrl-C
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except LlcudaError as error:
        click.echo(f"error: {_in_flags(str(error), sys.argv[1:])}", err=True)
        sys.exit(1)
    except UnicodeDecodeError as error:
        click.echo(f"error: the input is not UTF-8 text: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a file named on the command line that cannot be read or written
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        click.echo(f"error: {what}", err=True)
        sys.exit(1)
