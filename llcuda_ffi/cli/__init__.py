"""The command `llcuda-ffi`. Each subcommand lives in a module of its own, imported when it is run."""

from __future__ import annotations

import importlib
import sys

import click

from ..errors import LlcudaError

# command → module below this package; the module's `command` is the click command
COMMANDS = {
    "bundle": "bundle",
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
        found: click.Command = importlib.import_module(f".{module}", __name__).command
        return found


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llcuda-ffi")
def _root() -> None:
    """Run GGUF models through libllama in this process."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 an error of ours (one line on stderr), 2 bad usage, 130 Ctrl-C."""
    try:
        _root.main(prog_name="llcuda-ffi", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except LlcudaError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except UnicodeDecodeError as error:
        click.echo(f"error: the input is not UTF-8 text: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a file named on the command line that cannot be read or written
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
