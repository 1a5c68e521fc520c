"""`llcuda-ffi serve`: an OpenAI-compatible HTTP server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidRequest, MissingExtra
from .options import ModelReference, examples

if TYPE_CHECKING:
    from ..server import Models

_FILE = click.Path(path_type=Path)


@click.command(
    epilog=examples(
        "serve smollm2-135m",
        "serve ./model.gguf --port 8000 --api-key secret",
        "serve --models-dir ./models --memory 16 --ttl 600",
    )
)
@click.argument("models", nargs=-1, metavar="MODEL...", type=ModelReference())
@click.option("-m", "--model", "more", multiple=True, type=ModelReference(), help="The same as MODEL; may be repeated.")
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
@click.option("--lenient", is_flag=True, help="Take unknown fields and model names instead of refusing them.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8080, show_default=True, help="0 takes a free one.")
@click.option("--unix-socket", type=_FILE, help="Listen at a path instead.")
@click.option("--tls-cert", type=_FILE, help="A certificate (PEM): https.")
@click.option("--tls-key", type=_FILE, help="Its key.")
@click.option("--api-key", envvar="LLCUDA_FFI_API_KEY", help="What clients must send (or $LLCUDA_FFI_API_KEY).")
@click.option("--api-key-file", type=_FILE, help="Several keys: on each line a name and a key.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-ngl", "--n-gpu-layers", type=int, help="Layers on the GPU; by default as many as fit.")
@click.option("-c", "--ctx", "--n-ctx", "n_ctx", type=int, help="Most tokens of prompt and answer.")
@click.option("--parallel", type=int, default=8, show_default=True, help="Requests computed together.")
@click.option("--contexts", type=int, help="Contexts that divide the requests; by default 2 on a GPU from 32 on.")
@click.option("--kv-cells", type=int, help="Tokens of the KV cache, shared by all requests.")
@click.option("--kv-type", default="f16", show_default=True)
@click.option("--disk-cache", default="0", help='Disk for computed prefixes: "16GiB" (docs/cache.md).')
@click.option("--batch", "n_batch", type=int, help="Most tokens of a batch.")
@click.option("--ubatch", "n_ubatch", type=int, help="Most tokens computed at once.")
@click.option("--threads", type=int, help="CPU threads; by default they adapt.")
@click.option("--flash-attn", type=click.Choice(["auto", "enabled", "disabled"]), default="auto", show_default=True)
@click.option("--draft", help='Speculative decoding: "ngram", or a small model.')
@click.option("--isolate", is_flag=True, help="Compute in a child process, which is replaced when it dies.")
@click.option("--max-queue", type=click.IntRange(0), default=128, show_default=True, help="Requests that may wait.")
@click.option("--max-body-mb", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--read-timeout", type=click.FloatRange(0.1), help="Seconds for a request's head (15), and body (60).")
@click.option("--cors-origin", multiple=True, help="A web origin whose pages may use it; may be repeated.")
@click.option("--grace", type=click.IntRange(0), default=30, show_default=True, help="Seconds to finish at the end.")
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
        **settings,
    }
    vectors = {"device": device, "bundle": bundle}
    by_kind = {"text": {**text, "bundle": bundle}, "embedding": vectors, "rerank": vectors}

    def load() -> Models:
        named = [*models, embedding_model] if embedding_model is not None else models
        return _models(named, models_dir, _pairs(aliases), _pairs(loras), mmproj, pin, by_kind, memory_gb, ttl, lenient)

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
        )
    except ModuleNotFoundError as error:
        raise _missing(error) from None


def _models(
    named: Sequence[str],
    folder: Path | None,
    aliases: Sequence[tuple[str, str]],
    loras: Sequence[tuple[str, str]],
    mmproj: str | None,
    pinned: Sequence[str],
    settings: dict[str, dict[str, Any]],
    memory_gb: float | None,
    ttl: float | None,
    lenient: bool,
) -> Models:
    """The models of the command line; those named are loaded."""
    from ..server import Models, ServedModel
    from ..server.models import found_in

    first = named[0] if named else None
    own_name = next((left for left, right in aliases if not right), None)
    others = [(left, right) for left, right in aliases if right]
    found = []
    for reference in named:
        is_first = reference == first
        adapters = {name: Path(file) for name, file in loras} if is_first else {}
        name = own_name if is_first else None
        own = {**settings, "text": {**settings["text"], "mmproj": mmproj if is_first else None}}
        found.append(ServedModel.find(reference, name=name, adapters=adapters, settings=own))  # type: ignore[arg-type]
    listed = [*found]
    if folder is not None:
        there = {model.reference for model in found}
        listed += [m for m in found_in(folder, settings=settings) if m.reference not in there]
    for alias, name in others:
        model = _named(listed, name, "--alias")
        model.aliases = [*model.aliases, alias]
    for name in pinned:
        _named(listed, name, "--pin").pinned = True
    budget = None if memory_gb is None else int(memory_gb * 1e9)
    models = Models(listed, memory_budget=budget, idle_timeout=ttl, lenient=lenient)
    try:
        models.load_at_start(found)
    except BaseException:
        models.close()
        raise
    return models


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
