"""ASGI middleware around every request: its id, its line in the access log, its span where OpenTelemetry is there."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("llcuda_ffi.access")

_ID = re.compile(rb"[\w.:-]{1,128}")


class RequestLog:
    """Gives each request an id (the client's X-Request-Id, else a new one), and logs it as one line of JSON."""

    def __init__(self, app: ASGIApp, *, access_log: bool = False) -> None:
        self._app, self._logs = app, access_log
        self._tracer = _tracer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _ID.fullmatch(given) else b"req_" + secrets.token_hex(12).encode()
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id.decode()
        began, status = time.perf_counter(), 499

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Anthropic's clients read request-id
                ids = [(b"x-request-id", request_id), (b"request-id", request_id)]
                message = {**message, "headers": [*message.get("headers", ()), *ids]}
            await send(message)

        with self._span(scope, headers) as span:
            try:
                await self._app(scope, receive, answer)
            finally:
                facts: dict[str, Any] = state.get("facts", {})
                if span is not None:
                    span.set_attributes({"http.response.status_code": status, **_attributes(facts)})
                if self._logs:
                    line = {
                        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        "id": state["request_id"],
                        "client": (scope.get("client") or ("",))[0],
                        "key": state.get("key"),
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "seconds": round(time.perf_counter() - began, 4),
                        **facts,
                    }
                    log.info("%s", json.dumps({name: value for name, value in line.items() if value is not None}))

    @contextlib.contextmanager
    def _span(self, scope: Scope, headers: dict[bytes, bytes]) -> Iterator[Any]:
        if self._tracer is None:
            yield None
            return
        from opentelemetry import propagate, trace

        texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {scope['path']}",
            context=propagate.extract(texts),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
        ) as span:
            yield span


def _tracer() -> Any:
    """OpenTelemetry's tracer; the one who runs the server configures where its spans go."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("llcuda_ffi.server")


_GEN_AI = {
    "model": "gen_ai.response.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "ttft": "gen_ai.server.time_to_first_token",
}


def _attributes(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a generation under OpenTelemetry's names for them."""
    return {_GEN_AI[name]: value for name, value in facts.items() if name in _GEN_AI}
