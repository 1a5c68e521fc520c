"""`llcuda-ffi serve`: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidRequest, MissingExtra
from ..params import override
from ..sampling_params import SamplingParams
from .options import ModelReference, examples

if TYPE_CHECKING:
    from ..server import Models, ServedModel
    from ..server.served_model import Kind

_FILE = click.Path(path_type=Path)


@click.command(
    epilog=examples(
        "serve smollm2-135m",
        "serve ./model.gguf --port 8000 --api-key secret",
        "serve --models-dir ./models --memory 16 --ttl 600",
    )
)
@click.argument("models", nargs=-1, metavar="MODEL...", type=ModelReference())
@click.option("-m", "--model", "more", multiple=True, type=ModelReference(), help="The same as MODEL, may be repeated.")
@click.option("--models-dir", type=_FILE, help="Also every GGUF file of a folder, each loaded when it is asked for.")
@click.option("--embedding-model", help="One more model, for /v1/embeddings.")
@click.option(
    "--alias", "aliases", multiple=True, help="NAME=MODEL: a further name; a name alone is the first model's."
)
@click.option("--lora", "loras", multiple=True, metavar="NAME=FILE", help="An adapter of the first model.")
@click.option("--mmproj", help='The first model\'s projector, for images and sound: a file, or "auto" (docs/media.md).')
@click.option("--bundle", help="The libraries to use, by name or path.")
@click.option("--pin", multiple=True, help="A model that is never freed.")
@click.option("--ttl", type=click.FloatRange(0, min_open=True), help="Idle seconds after which a model is freed.")
@click.option("--memory", "memory_gb", type=click.FloatRange(0, min_open=True), help="Most GB of models at once.")
@click.option("--chat-template", "template", help="The first model's template: a file, or a name such as chatml.")
@click.option(
    "--chat-template-kwargs",
    "variables",
    default="{}",
    metavar="JSON",
    help='Given to templates: {"enable_thinking": false}.',
)
@click.option(
    "--default", "defaults", multiple=True, metavar="NAME=VALUE", help="A setting of requests that do not name it."
)
@click.option("--lenient", is_flag=True, help="Take unknown fields and model names instead of refusing them.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address to listen at; several with commas between."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--unix-socket", type=_FILE, help="Listen at a path instead.")
@click.option("--tls-cert", type=_FILE, help="A certificate (PEM): https.")
@click.option("--tls-key", type=_FILE, help="Its key.")
@click.option("--api-key", envvar="LLCUDA_FFI_API_KEY", help="What clients must send (or $LLCUDA_FFI_API_KEY).")
@click.option("--api-key-file", type=_FILE, help="Several keys: on each line a name and a key.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-ngl", "--n-gpu-layers", type=int, help="Layers on the GPU; by default as many as fit.")
@click.option("-c", "--ctx", "--n-ctx", "n_ctx", type=click.IntRange(1), help="Most tokens of prompt and answer.")
@click.option("--parallel", type=click.IntRange(1), default=8, show_default=True, help="Requests computed together.")
@click.option(
    "--contexts", type=click.IntRange(1), help="Contexts that divide the requests; by default 2 on a GPU from 32 on."
)
@click.option("--kv-cells", type=click.IntRange(1), help="Tokens of the KV cache, shared by all requests.")
@click.option("--kv-type", default="f16", show_default=True, help="Type of the KV cache: f16, q8_0, …")
@click.option("--disk-cache", default="0", help='Disk for computed prefixes: "16GiB" (docs/cache.md).')
@click.option("--batch", "n_batch", type=click.IntRange(1), help="Most tokens of a batch.")
@click.option("--ubatch", "n_ubatch", type=click.IntRange(1), help="Most tokens computed at once.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; by default they adapt.")
@click.option(
    "--flash-attn",
    type=click.Choice(["auto", "enabled", "disabled"]),
    default="auto",
    show_default=True,
    help="Flash attention; auto: where the backend has it.",
)
@click.option("--draft", help='Speculative decoding: "ngram", "mtp", or a small model.')
@click.option(
    "--isolate/--no-isolate",
    default=None,
    help="Compute in a child process, which is replaced when it dies; by default where there is a GPU.",
)
@click.option("--max-queue", type=click.IntRange(0), default=128, show_default=True, help="Requests that may wait.")
@click.option("--max-body-mb", type=click.IntRange(1, 1024), default=8, show_default=True, help="Largest request body.")
@click.option("--read-timeout", type=click.FloatRange(0.1), help="Seconds for a request's head (15), and body (60).")
@click.option("--cors-origin", multiple=True, help="A web origin whose pages may use it; may be repeated.")
@click.option("--grace", type=click.IntRange(0), default=30, show_default=True, help="Seconds to finish at the end.")
@click.option("--ui/--no-ui", default=True, show_default=True, help="The page at /.")
@click.option("--access-log", is_flag=True, help="A line of JSON for each request.")
def command(
    models: tuple[str, ...],
    more: tuple[str, ...],
    models_dir: Path | None,
    embedding_model: str | None,
    aliases: tuple[str, ...],
    loras: tuple[str, ...],
    mmproj: str | None,
    bundle: str | None,
    pin: tuple[str, ...],
    ttl: float | None,
    memory_gb: float | None,
    template: str | None,
    variables: str,
    defaults: tuple[str, ...],
    lenient: bool,
    host: str,
    port: int,
    unix_socket: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    api_key: str | None,
    api_key_file: Path | None,
    device: str,
    n_gpu_layers: int | None,
    parallel: int,
    contexts: int | None,
    threads: int | None,
    max_queue: int,
    max_body_mb: int,
    read_timeout: float | None,
    cors_origin: tuple[str, ...],
    grace: int,
    access_log: bool,
    ui: bool,
    isolate: bool | None,
    **settings: Any,
) -> None:
    """Serve models (paths, registry names, repo:file.gguf) over HTTP, with OpenAI's API. See docs/server.md.

    Those named are loaded at the start, those of --models-dir when they are asked for.
    """
    try:
        from ..server import serve
        from ..server.keys import Keys
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    if api_key == "":
        raise click.UsageError("--api-key is empty")
    models += more
    if not models and models_dir is None:
        raise click.UsageError("name a MODEL, or give --models-dir")
    keys = Keys.read(api_key_file) if api_key_file is not None else {}
    if api_key is not None:
        keys["default"] = api_key
    text = {
        "device": device,
        "n_gpu_layers": "auto" if n_gpu_layers is None else n_gpu_layers,
        "n_parallel": parallel,
        "n_contexts": contexts or "auto",
        "n_threads": threads or "auto",
        "isolate": isolates(device) and not loras if isolate is None else isolate,
        **settings,
    }
    vectors = {"device": device, "bundle": bundle}
    by_kind: dict[Kind, dict[str, Any]] = {"text": {**text, "bundle": bundle}, "embedding": vectors, "rerank": vectors}

    def load() -> Models:
        named = [*models, embedding_model] if embedding_model is not None else models
        found = _found(named, models_dir, _pairs(loras), by_kind, mmproj, template, _defaults(defaults))
        for model in found:
            model.template_variables = _object(variables)
        return _models(found, len(named), _pairs(aliases), pin, memory_gb, ttl, lenient)

    try:
        serve(
            load,
            host=host,
            port=port,
            unix_socket=unix_socket,
            api_keys=keys,
            max_body=max_body_mb << 20,
            read_timeout=read_timeout,
            max_queue=max_queue,
            cors_origins=cors_origin,
            tls_cert=tls_cert,
            tls_key=tls_key,
            grace=grace,
            access_log=access_log,
            ui=ui,
        )
    except ModuleNotFoundError as error:
        raise _missing(error) from None


def isolates(device: str) -> bool:
    """Whether models are computed in a child process where nobody says: where a GPU may be used.

    With many streams HTTP and the engine would wait for each other in one interpreter (docs/server.md).
    """
    from ..bundles.select import parse_device
    from ..hardware.gpu import survey

    return parse_device(device)[0] != "cpu" and bool(survey().gpus)


def _found(
    named: Sequence[str],
    folder: Path | None,
    loras: Sequence[tuple[str, str]],
    settings: dict[Kind, dict[str, Any]],
    mmproj: str | None,
    template: str | None,
    defaults: dict[str, Any],
) -> list[ServedModel]:
    """The models of the command line, those named first; none is loaded."""
    from ..server import ServedModel
    from ..server.models import found_in

    found = []
    for i, reference in enumerate(named):
        own = settings
        if i == 0 and mmproj is not None:
            own = {**settings, "text": {**settings["text"], "mmproj": mmproj}}
        model = ServedModel.find(reference, settings=own, defaults=defaults)
        if i == 0:
            model.adapters = {name: Path(file) for name, file in loras}
            model.template = None if template is None else _template(template)
        found.append(model)
    if folder is not None:
        there = {model.reference for model in found}
        found += [m for m in found_in(folder, settings=settings, defaults=defaults) if m.reference not in there]
        if not found:
            raise InvalidRequest(f"there is no model to be served in {folder}: no GGUF file, or none that can be read")
    return found


def _models(
    found: Sequence[ServedModel],
    at_start: int,
    aliases: Sequence[tuple[str, str]],
    pinned: Sequence[str],
    memory_gb: float | None,
    ttl: float | None,
    lenient: bool,
) -> Models:
    """The models with their names; the first `at_start` are loaded."""
    from ..server import Models

    for alias, name in aliases:
        model = _named(found, name, "--alias") if name else found[0]
        model.aliases = [*model.aliases, alias]
    for name in pinned:
        _named(found, name, "--pin").pinned = True
    # of the names that were given to the first model alone, the first is how the API shows it
    own = [alias for alias, name in aliases if not name]
    if own:
        first, others = found[0], {name for model in found[1:] for name in model.names}
        former = [] if first.name in others else [first.name]  # it is still found by the name on the command line
        first.name, first.aliases = own[0], [*(a for a in first.aliases if a != own[0]), *former]
    budget = None if memory_gb is None else int(memory_gb * 1e9)
    models = Models(found, memory_budget=budget, idle_timeout=ttl, lenient=lenient)
    try:
        models.load_at_start(found[:at_start])
    except BaseException:
        models.close()
        raise
    return models


def _template(given: str) -> str:
    """A template: the text of a file, a built-in name, or Jinja as it is."""
    from ..chat.template.builtin import TEMPLATES

    if "{%" in given or "{{" in given:
        return given
    try:
        if Path(given).is_file():
            return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the template {given:.200} cannot be read: {error}") from None
    if given not in TEMPLATES:
        raise InvalidRequest(f"no file and no template is called {given!r:.200}: there is {', '.join(TEMPLATES)}")
    return given


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest(f"--chat-template-kwargs must be a JSON object, not {text!r:.60}")
    return found


def _defaults(given: Sequence[str]) -> dict[str, Any]:
    """Settings of generations, checked.

    Raises:
        InvalidRequest: an unknown one, or a value that it does not take.
    """
    found: dict[str, Any] = {}
    for name, value in _pairs(given):
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    override(SamplingParams(), found)
    return found


def _named(models: Sequence[Any], name: str, option: str) -> Any:
    for model in models:
        if name in model.names:
            return model
    known = ", ".join(model.name for model in models)
    raise InvalidRequest(f"{option}: no model is called {name!r:.100}: there is {known}")


def _pairs(values: Sequence[str]) -> list[tuple[str, str]]:
    """NAME=VALUE each; without = the second is empty."""
    return [(left, right) for left, _, right in (value.partition("=") for value in values)]


def _missing(error: ModuleNotFoundError) -> Exception:
    if error.name not in ("starlette", "uvicorn", "h11"):
        return error
    return MissingExtra(f"the server needs {error.name}, which is not installed: pip install starlette uvicorn")
