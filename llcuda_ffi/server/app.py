"""The ASGI application: routes, the key, errors."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import LlcudaError
from .chat import ChatCompletions
from .completions import Completions
from .embeddings import Embeddings
from .errors import Refused, answer_error
from .events import ClientLeft
from .gate import Gate
from .metrics import metrics_text
from .models import Served
from .tokens import Tokens

MAX_BODY = 16 << 20
MAX_QUEUE = 128


def create_app(
    served: Served,
    *,
    api_key: str | None = None,
    max_body: int = MAX_BODY,
    max_queue: int = MAX_QUEUE,
    cors_origins: Sequence[str] = (),
) -> Starlette:
    """The server as an ASGI application, for uvicorn or to be mounted in another one.

    Args:
        api_key: what clients must send as `Authorization: Bearer KEY`; /health needs none.
        max_body: largest body in bytes.
        max_queue: completions that may wait for a slot; more get 503.
        cors_origins: web origins whose pages may use the server; none by default.
    """
    llm = served.llm
    gate = Gate((llm.llama.n_parallel if llm is not None else 8) + max_queue)
    tokens = Tokens(served, max_body)

    async def health(request: Request) -> Response:
        if gate.closing:
            raise Refused(503, "the server is stopping", "closing")
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> Response:
        data = [
            {"id": name, "object": "model", "created": served.created, "owned_by": "llcuda_ffi", "kind": kind}
            for kind, name in served.names.items()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        for kind, known in served.names.items():
            if known == name:
                entry = {"id": name, "object": "model", "created": served.created, "owned_by": "llcuda_ffi"}
                return JSONResponse({**entry, "kind": kind})
        raise Refused(404, f"no model is called {name!r:.100}", "model_not_found")

    async def metrics(request: Request) -> Response:
        text = metrics_text(None if llm is None else llm.metrics(), gate)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    middleware: list[Middleware] = []
    if cors_origins:
        from starlette.middleware.cors import CORSMiddleware

        methods, headers = ["GET", "POST"], ["Authorization", "Content-Type"]
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(cors_origins), allow_methods=methods, allow_headers=headers)
        )
    if api_key is not None:
        middleware.append(Middleware(_Key, key=api_key))
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/completions", Completions(served, gate, max_body).post, methods=["POST"]),
            Route("/v1/chat/completions", ChatCompletions(served, gate, max_body).post, methods=["POST"]),
            Route("/v1/embeddings", Embeddings(served, gate, max_body).post, methods=["POST"]),
            Route("/tokenize", tokens.tokenize, methods=["POST"]),
            Route("/detokenize", tokens.detokenize, methods=["POST"]),
        ],
        middleware=middleware,
        exception_handlers={
            HTTPException: answer_error,
            LlcudaError: answer_error,
            ClientLeft: _nobody,
            ClientDisconnect: _nobody,
            Exception: answer_error,
        },
    )
    app.state.gate = gate
    return app


async def _nobody(request: Request, error: Exception) -> Response:
    """For a client that has left; nothing of it is sent."""
    return Response(status_code=499)


class _Key:
    """Refuses requests without the key, but for /health."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, b"Bearer " + key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self._key):
                refused = Refused(401, "send Authorization: Bearer and the key of this server", "invalid_api_key")
                await (await answer_error(Request(scope), refused))(scope, receive, send)
                return
        await self._app(scope, receive, send)
