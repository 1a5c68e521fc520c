"""`llcuda-ffi serve`: an OpenAI-compatible HTTP server."""

from __future__ import annotations

from typing import Any

import click

from ..errors import InvalidRequest


@click.command()
@click.argument("model")
@click.option("--embedding-model", help="A second model, for /v1/embeddings.")
@click.option("--alias", help="The text model's name in the API; by default its reference, or its file's name.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8080, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="LLCUDA_FFI_API_KEY", help="What clients must send (or $LLCUDA_FFI_API_KEY).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--n-gpu-layers", type=int, help="Layers on the GPU; by default as many as fit.")
@click.option("-c", "--ctx", "n_ctx", type=int, help="Most tokens of prompt and answer.")
@click.option("--parallel", type=int, default=8, show_default=True, help="Requests computed together.")
@click.option("--contexts", type=int, help="Contexts that divide the requests; by default 2 on a GPU from 32 on.")
@click.option("--kv-cells", type=int, help="Tokens of the KV cache, shared by all requests.")
@click.option("--kv-type", default="f16", show_default=True)
@click.option("--batch", "n_batch", type=int, help="Most tokens of a batch.")
@click.option("--ubatch", "n_ubatch", type=int, help="Most tokens computed at once.")
@click.option("--threads", type=int, help="CPU threads; by default they adapt.")
@click.option("--flash-attn", type=click.Choice(["auto", "enabled", "disabled"]), default="auto", show_default=True)
@click.option("--draft", help='Speculative decoding: "ngram", or a small model.')
@click.option("--max-queue", type=click.IntRange(0), default=128, show_default=True, help="Requests that may wait.")
@click.option("--max-body-mb", type=click.IntRange(1, 1024), default=16, show_default=True)
@click.option("--cors-origin", multiple=True, help="A web origin whose pages may use it; may be repeated.")
@click.option("--grace", type=click.IntRange(0), default=30, show_default=True, help="Seconds to finish at the end.")
@click.option("--access-log", is_flag=True, help="A line for each request.")
def command(
    model: str,
    embedding_model: str | None,
    alias: str | None,
    host: str,
    port: int,
    api_key: str | None,
    device: str,
    n_gpu_layers: int | None,
    parallel: int,
    contexts: int | None,
    threads: int | None,
    max_queue: int,
    max_body_mb: int,
    cors_origin: tuple[str, ...],
    grace: int,
    access_log: bool,
    **settings: Any,
) -> None:
    """Serve MODEL (path, registry name, repo:file.gguf) over HTTP, with OpenAI's API. See docs/server.md."""
    try:
        from ..server import Served, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise InvalidRequest(f"{error.name} is missing: pip install 'llcuda-ffi[server]'") from None
    if api_key == "":
        raise click.UsageError("--api-key is empty")

    def load() -> Served:
        return Served.load(
            model,
            embedding_model,
            name=alias,
            embedding_settings={"device": device},
            device=device,
            n_gpu_layers="auto" if n_gpu_layers is None else n_gpu_layers,
            n_parallel=parallel,
            n_contexts=contexts or "auto",
            n_threads=threads or "auto",
            **settings,
        )

    try:
        serve(
            load,
            host=host,
            port=port,
            api_key=api_key,
            max_body=max_body_mb << 20,
            max_queue=max_queue,
            cors_origins=cors_origin,
            grace=grace,
            access_log=access_log,
        )
    except ModuleNotFoundError as error:
        if error.name != "uvicorn":
            raise
        raise InvalidRequest("uvicorn is missing: pip install 'llcuda-ffi[server]'") from None
