"""ASGI middleware, the innermost: requests that would end without an answer get one."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import answer_error, stopping
from .gate import Gate


class Unanswered:
    """Answers what no handler expected, and what the end of the server cuts off.

    Inside all other middleware, so that these answers too have their id, their line in the log, their CORS headers.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        error: Exception
        try:
            await self._app(scope, receive, noting)
            return
        except asyncio.CancelledError:
            if started or not self._gate.closing:
                raise
            error = stopping()
        except Exception as caught:
            if started or scope["type"] != "http":
                raise
            error = caught
        await (await answer_error(Request(scope), error))(scope, receive, send)
