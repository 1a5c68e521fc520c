"""The ASGI application: its routes and what stands before them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .. import __version__
from ..errors import LlcudaError
from .anthropic.endpoint import Messages
from .body import BodyReader
from .chat import ChatCompletions
from .completions import Completions
from .embeddings import Embeddings
from .errors import Refused, answer_error
from .events import ClientLeft
from .gate import Gate
from .keys import KeyCheck, Keys
from .llama_server.completion import NativeCompletion
from .llama_server.properties import Properties
from .llama_server.tokens import Tokens
from .metrics import metrics_text
from .models import Models
from .page import FILES, page
from .request_log import RequestLog
from .rerank import Rerank
from .responses.endpoint import Responses
from .responses.store import ResponseKeeper, ResponseStore
from .served_model import ServedModel
from .state import ServerState
from .unanswered import Unanswered

MAX_BODY = 8 << 20
MAX_QUEUE = 128
BODY_SECONDS = 60.0
_USUAL_PARALLEL = 8
_LOCAL = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def create_app(
    models: Models,
    *,
    api_keys: Sequence[str] | Mapping[str, str] = (),
    max_body: int = MAX_BODY,
    max_queue: int = MAX_QUEUE,
    body_timeout: float = BODY_SECONDS,
    cors_origins: Sequence[str] = (),
    access_log: bool = False,
    ui: bool = True,
    responses: ResponseKeeper | None = None,
) -> Starlette:
    """The server as an ASGI application, for uvicorn or to be mounted in another one.

    Args:
        models: what it serves; closing them is the caller's affair.
        api_keys: what clients must send as `Authorization: Bearer KEY` or `X-Api-Key: KEY`, or names with keys;
            /health needs none.
        max_body: largest body in bytes.
        max_queue: completions that may wait for a slot; more get 503.
        body_timeout: seconds in which a body must arrive.
        cors_origins: web origins whose pages may use the server ("*": all; "localhost": those of this
            machine, any port); none by default.
        access_log: log each request as a line of JSON (logger llcuda_ffi.access).
        ui: serve the page at /.
        responses: keeps the responses that later ones go on from; by default this server's memory.
    """
    parallel = [int(m.settings.get("n_parallel", _USUAL_PARALLEL)) for m in models if m.kind == "text"]
    gate = Gate(max(parallel, default=_USUAL_PARALLEL) + max_queue)
    state = ServerState(models, gate, BodyReader(max_body, timeout=body_timeout, lenient=models.lenient))
    middleware: list[Middleware] = [Middleware(RequestLog, access_log=access_log)]
    if cors_origins:
        # SDKs of browsers send headers of their own (x-stainless-…): any may be sent
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=[origin for origin in cors_origins if origin != "localhost"],
                allow_origin_regex=_LOCAL if "localhost" in cors_origins else None,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Request-Id", "Retry-After"],
                max_age=3600,
            )
        )
    if api_keys:
        middleware.append(Middleware(KeyCheck, keys=Keys(api_keys)))
    middleware.append(Middleware(Unanswered, gate=gate))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        idle = asyncio.ensure_future(models.free_idle())
        yield
        idle.cancel()

    app = Starlette(
        routes=_routes(state, responses or ResponseStore()) + ([Route(path, page) for path in FILES] if ui else []),
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={
            HTTPException: answer_error,
            LlcudaError: answer_error,
            ClientLeft: _nobody,
            ClientDisconnect: _nobody,
        },
    )
    app.state.gate = gate
    return app


def _routes(state: ServerState, kept: ResponseKeeper) -> list[Route]:
    status = _Status(state)
    chat, completions, embeddings = ChatCompletions(state), Completions(state), Embeddings(state)
    responses, messages = Responses(state, kept), Messages(state)
    rerank, tokens, native, properties = Rerank(state), Tokens(state), NativeCompletion(state), Properties(state)
    # with and without /v1, as clients are given either base URL
    both = {
        "/health": status.ready,
        "/models": status.models,
        "/models/{name:path}": status.model,
        "/completions": completions.post,
        "/chat/completions": chat.post,
        "/chat/completions/input_tokens": chat.input_tokens,
        "/responses": responses.post,
        "/responses/input_tokens": responses.input_tokens,
        "/messages": messages.post,
        "/messages/count_tokens": messages.count_tokens,
        "/rerank": rerank.rerank,
        "/reranking": rerank.rerank,
        "/score": rerank.score,
    }
    single = {
        "/livez": status.alive,
        "/ping": status.alive,
        "/version": status.version,
        "/readyz": status.ready,
        "/metrics": status.metrics,
        "/v1/embeddings": embeddings.post,
        "/embeddings": embeddings.native,
        "/embedding": embeddings.native,
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
        "/tokenizer_info": tokens.info,
        "/apply-template": chat.apply_template,
        "/completion": native.completion,
        "/infill": native.infill,
        "/props": properties.props,
        "/slots": properties.slots,
    }
    read = {
        "/health",
        "/models",
        "/models/{name:path}",
        "/livez",
        "/ping",
        "/version",
        "/readyz",
        "/metrics",
        "/props",
        "/slots",
        "/tokenizer_info",
    }
    routes = []
    for path, endpoint in both.items():
        methods = ["GET" if path in read else "POST"]
        routes += [Route("/v1" + path, endpoint, methods=methods), Route(path, endpoint, methods=methods)]
    routes += [Route(path, end, methods=["GET" if path in read else "POST"]) for path, end in single.items()]
    for start in ("/v1", ""):
        routes.append(Route(start + "/responses/{name}", responses.one, methods=["GET", "DELETE"]))
        routes.append(Route(start + "/responses/{name}/input_items", responses.input_items))
    routes += [Route("/models/load", status.load, methods=["POST"])]
    routes += [Route("/models/unload", status.unload, methods=["POST"])]
    routes.append(Route("/lora-adapters", properties.adapters, methods=["GET", "POST"]))
    return routes


class _Status:
    """What the server has and whether it works."""

    def __init__(self, state: ServerState) -> None:
        self._state, self._started = state, int(time.time())

    async def alive(self, request: Request) -> Response:
        """GET /livez: the process answers."""
        return JSONResponse({"status": "ok"})

    async def version(self, request: Request) -> Response:
        """GET /version: of this package."""
        return JSONResponse({"version": __version__})

    async def ready(self, request: Request) -> Response:
        """GET /health, /readyz: it takes requests, and no engine is dead."""
        if self._state.gate.closing:
            raise Refused(503, "the server is stopping", "closing")
        for model in self._state.models:
            if model.failure is not None:
                raise Refused(503, f"the engine of {model.name} has failed: {model.failure}", "engine_failed")
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        found = [_listed(model, request) for model in self._state.models]
        more = {"first_id": found[0]["id"], "last_id": found[-1]["id"], "has_more": False} if found else {}
        return JSONResponse({"object": "list", "data": found, **(more if _anthropic(request) else {})})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        if not request.path_params["name"]:
            return await self.models(request)
        return JSONResponse(_listed(self._state.models.find(request.path_params["name"]), request))

    async def load(self, request: Request) -> Response:
        """POST /models/load: load a model now."""
        fields = await self._state.read(request)
        model = self._state.models.find(fields.text("model"))
        fields.end()
        async with self._state.models.use(model):
            return JSONResponse({"success": True})

    async def unload(self, request: Request) -> Response:
        """POST /models/unload: free a model when its requests are over."""
        fields = await self._state.read(request)
        model = self._state.models.find(fields.text("model"))
        fields.end()
        if model.pinned:
            raise Refused(400, f"{model.name} is pinned", "pinned")
        await self._state.models.unload(model)
        return JSONResponse({"success": True})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        headers = {"Process-Start-Time-Unix": str(self._started)}
        return PlainTextResponse(metrics_text(self._state), headers=headers, media_type="text/plain; version=0.0.4")


def _anthropic(request: Request) -> bool:
    """Whether a client of Anthropic's API asks."""
    return "anthropic-version" in request.headers


def _listed(model: ServedModel, request: Request) -> dict[str, Any]:
    """An entry of GET /v1/models; for Anthropic's clients with their names too."""
    out = model.to_dict()
    if _anthropic(request):
        created = datetime.fromtimestamp(model.created, timezone.utc).isoformat()
        out |= {"type": "model", "display_name": model.name, "created_at": created}
    return out


async def _nobody(request: Request, error: Exception) -> Response:
    """For a client that has left; nothing of it is sent."""
    return Response(status_code=499)
