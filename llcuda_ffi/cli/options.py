"""The options that commands share, from one table: what becomes arguments of Llama, and what becomes SamplingParams."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..fetch.progress import Progress, on_screen

if TYPE_CHECKING:
    from ..llama import Llama

C = TypeVar("C", bound=Callable[..., Any])

DEFAULT_MODEL = "smollm2-135m"
MOMENT_SECONDS = 1.0


def examples(*lines: str) -> str:
    """The end of a command's --help: lines that can be typed."""
    return "\n".join(["\b", "Examples:", *(f"  llcuda-ffi {line}" for line in lines)])


class ModelReference(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A path, a registry name, or a file of the hub; the shell completes names of the registry and .gguf files."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin so, and files (https://click.palletsprojects.com, Shell Completion)."""
        from ..hub.registry import all_models

        names = [CompletionItem(model.name) for model in all_models() if model.name.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


class Adapter(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """FILE or FILE:SCALE of a LoRA adapter."""

    name = "file[:scale]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Path, float]:
        """The file and its scale."""
        if isinstance(value, tuple):
            return value
        path, colon, scale = str(value).rpartition(":")
        if colon and not Path(str(value)).exists():
            try:
                return Path(path), float(scale)
            except ValueError:
                self.fail(f"{scale!r} is no scale: give FILE or FILE:SCALE", param, ctx)
        return Path(str(value)), 1.0


class Schema(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A JSON schema: its text, or the name of a file that holds it."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The schema as Python values."""
        if not isinstance(value, str):
            return value
        text = value
        if not value.lstrip().startswith(("{", "true", "false")):
            try:
                text = Path(value).read_text(encoding="utf-8")
            except OSError as error:
                self.fail(f"{value}: {error.strerror}; give a JSON schema or a file with one", param, ctx)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            self.fail(f"the schema is no JSON: {error}", param, ctx)


_MODEL = (
    click.option(
        "-m",
        "--model",
        "model_option",
        type=ModelReference(),
        help=f"A path, a name of `model list`, or owner/repo:Q4_K_M; default {DEFAULT_MODEL}.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("-ngl", "--n-gpu-layers", type=int, help="Layers on the GPU; by default as many as fit."),
    click.option("-c", "--ctx", "--n-ctx", "n_ctx", type=click.IntRange(1), help="Most tokens of prompt and answer."),
    click.option("--kv-type", default="f16", show_default=True, help="Type of the KV cache: f16, q8_0, …"),
    click.option(
        "--flash-attn",
        type=click.Choice(["auto", "enabled", "disabled"]),
        default="auto",
        show_default=True,
        help="Flash attention; auto: where the backend has it.",
    ),
    click.option("--threads", type=click.IntRange(1), help="CPU threads; by default they adapt."),
    click.option("--lora", type=Adapter(), multiple=True, help="A LoRA adapter (GGUF); may be repeated."),
    click.option("--mmproj", help="The model's projector, for images and sound (needs a bundle with libmtmd)."),
    click.option("--draft", help='Speculative decoding: "ngram", "mtp", or a small model.'),
    click.option("--bundle", help="The libraries to use, by name or path."),
)

_SAMPLING = (
    click.option("-n", "--max-tokens", type=int, default=128, show_default=True, help="Most tokens to generate."),
    click.option("-t", "--temperature", type=float, default=0.8, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=40, show_default=True, help="Only the k likeliest tokens; 0: all."),
    click.option("--top-p", type=float, default=0.95, show_default=True, help="Only the likeliest, p in sum; 1: all."),
    click.option(
        "--min-p", type=float, default=0.05, show_default=True, help="Only those p times as likely as the first."
    ),
    click.option("--repeat-penalty", type=float, default=1.0, show_default=True, help="Above 1: less repetition."),
    click.option("--seed", type=int, help="The same seed gives the same text."),
    click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated."),
    click.option(
        "--overflow",
        type=click.Choice(["error", "stop", "shift"]),
        default="error",
        show_default=True,
        help="Where prompt and --max-tokens exceed --ctx: refuse, stop there, or forget the oldest.",
    ),
    click.option("--grammar", type=click.File("r", encoding="utf-8"), help="A GBNF grammar file."),
    click.option("--json-schema", type=Schema(), help="A JSON schema that the answer obeys: its text, or a file."),
)


def model_options(command: C) -> C:
    """-m and the options that become arguments of Llama."""
    for option in reversed(_MODEL):
        command = option(command)
    return command


def sampling_options(command: C) -> C:
    """The options that become SamplingParams."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


def pick_model(argument: str | None, option: str | None) -> str:
    """The model that was given as argument or as -m; the small one where none was.

    Raises:
        click.UsageError: both were given, and differ.
    """
    if argument and option and argument != option:
        raise click.UsageError(f"two models: {argument} and -m {option}")
    return next((given for given in (argument, option) if given is not None), DEFAULT_MODEL)


SAMPLING_NAMES = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop", "overflow", "grammar",
    "json_schema",
)  # fmt: skip


class Loading:
    """For `Llama(progress=)`: shows how far a load is, where bars are seen and it takes longer than a moment."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._bar: Progress | None = None

    def __call__(self, share: float) -> None:
        """The share that is loaded."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        if self._bar is None and share < 1 and now - self._began >= MOMENT_SECONDS and on_screen():
            self._bar = Progress("loading", 100, None, unit="%").__enter__()
        if self._bar is not None:
            self._bar.at(int(share * 100))
            if share >= 1:
                self._bar.__exit__(None, None, None)
                self._bar = None


def split_model_options(given: dict[str, Any]) -> tuple[dict[str, Any], tuple[tuple[Path, float], ...]]:
    """What a command got by `model_options`, as arguments of Llama, and the LoRA adapters with their scales."""
    given = dict(given)
    adapters, layers, threads = given.pop("lora"), given.pop("n_gpu_layers"), given.pop("threads")
    given["n_gpu_layers"] = "auto" if layers is None else layers
    given["n_threads"] = threads or "auto"
    given["progress"] = Loading()
    return given, adapters


def split_options(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], tuple[tuple[Path, float], ...]]:
    """What a command got by `model_options` and `sampling_options`.

    Returns:
        Arguments of Llama, arguments of SamplingParams, and the LoRA adapters with their scales.
    """
    given = dict(given)
    sampling = {name: given.pop(name) for name in SAMPLING_NAMES}
    if sampling["grammar"] is not None:
        sampling["grammar"] = sampling["grammar"].read()
    sampling["stop"] = tuple(sampling["stop"])
    llama, adapters = split_model_options(given)
    return llama, sampling, adapters


def use_adapters(llm: Llama, adapters: tuple[tuple[Path, float], ...]) -> None:
    """Load the adapters of --lora, for all requests."""
    if adapters:
        from ..lora.apply import load, swap

        swap(llm, {load(llm, path): scale for path, scale in adapters})


def flags_of(command: click.Command) -> dict[str, str]:
    """Setting → flag of a command ("n_ctx" → "--ctx"), for messages that name a setting."""
    found: dict[str, str] = {}
    for param in command.params:
        if isinstance(param, click.Option) and param.name:
            long = [name for name in param.opts if name.startswith("--")]
            found[param.name] = long[0] if long else param.opts[0]
    for option, setting in (("threads", "n_threads"), ("parallel", "n_parallel")):
        if option in found:
            found[setting] = found[option]
    return found
