"""The id, the line and the span of a request, around an application of a few lines."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from llcuda_ffi.server.request_log import RequestLog


async def _app(scope: Any, receive: Any, send: Any) -> None:
    scope["state"]["facts"] = {"model": "m", "prompt_tokens": 3, "completion_tokens": 5, "ttft": 0.1}
    await send({"type": "http.response.start", "status": 201, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b""})


def _ask(log: RequestLog, **headers: str) -> list[dict[str, Any]]:
    """What the application sent."""
    sent: list[dict[str, Any]] = []
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": given, "client": ("1.2.3.4", 5)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    asyncio.run(log(scope, receive, send))
    return sent


def test_line_and_id(caplog: pytest.LogCaptureFixture) -> None:
    """A line of JSON has the id that the answer has, the status and what was generated."""
    with caplog.at_level(logging.INFO, "llcuda_ffi.access"):
        headers = dict(_ask(RequestLog(_app, access_log=True), x_request_id="mine")[0]["headers"])
    assert headers[b"x-request-id"] == headers[b"request-id"] == b"mine"
    assert headers[b"x-own"] == b"1"
    line = json.loads(caplog.records[-1].message)
    assert (line["id"], line["status"], line["client"], line["completion_tokens"]) == ("mine", 201, "1.2.3.4", 5)
    caplog.clear()
    _ask(RequestLog(_app))
    assert not caplog.records


@pytest.mark.heavy
def test_span() -> None:
    """Where OpenTelemetry is configured, a request is a span with its tokens, a child of the client's own."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry import trace

    spans = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    _ask(RequestLog(_app), traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /v1/completions"
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["http.response.status_code"] == 201
