"""Exceptions that no handler expects, around an application of a few lines."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from llcuda_ffi.server.gate import Gate
from llcuda_ffi.server.request_log import RequestLog
from llcuda_ffi.server.unanswered import Unanswered


def _ask(error: BaseException, gate: Gate) -> tuple[int, dict[str, str], Any]:
    """The answer of an application that raises `error`: status, headers, JSON."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    asyncio.run(RequestLog(Unanswered(app, gate), access_log=True)(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(sent[1]["body"])


def test_unexpected(caplog: pytest.LogCaptureFixture) -> None:
    """500 in OpenAI's form with the request's id, which stands in the log too, with the traceback."""
    with caplog.at_level(logging.INFO):
        status, headers, answer = _ask(MemoryError("no memory left"), Gate(1))
    assert (status, answer["error"]["type"], answer["error"]["message"]) == (500, "server_error", "no memory left")
    line = json.loads(next(r.message for r in caplog.records if r.name == "llcuda_ffi.access"))
    assert (line["id"], line["status"]) == (headers["x-request-id"], 500)
    assert any(r.exc_info for r in caplog.records)


def test_cancelled() -> None:
    """Cancelled while the server stops: 503. Otherwise whoever cancels is told that it is."""
    gate = Gate(1)
    with pytest.raises(asyncio.CancelledError):
        _ask(asyncio.CancelledError(), gate)
    gate.closing = True
    status, _, answer = _ask(asyncio.CancelledError(), gate)
    assert (status, answer["error"]["code"]) == (503, "closing")
