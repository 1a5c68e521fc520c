"""A replica: one model behind the server's ASGI application, asked by the ingress through Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from ...server import Models, ServedModel, create_app

Pieces = AsyncGenerator["Head | bytes", None]


@dataclass(frozen=True)
class Asking:
    """An HTTP request on its way to a replica."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True)
class Head:
    """The head of an answer."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Replica:
    """The model, and its application."""

    def __init__(self, model: str, name: str | None, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Load the model.

        Args:
            model: a path that every node has, or a name.
            name: how the API shows it.
            settings: arguments of AsyncLlama.
            options: arguments of create_app.
        """
        self._model = ServedModel.find(model, name=name, settings={"text": settings})
        self._model.open()
        self._app = create_app(Models([self._model]), **options)

    def check_health(self) -> None:
        """Asked by Ray every few seconds: a replica whose engine is dead is replaced."""
        if self._model.failure is not None:
            raise RuntimeError(f"the engine has failed: {self._model.failure}")

    async def answer(self, asking: Asking, keys: list[str]) -> Pieces:
        """The answer's head, then its body in pieces. Closing it cancels the request.

        Args:
            keys: for the router (prefixes.py); not used here.
        """
        sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        bodies = [{"type": "http.request", "body": asking.body, "more_body": False}]
        left = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(_scope(asking), receive, sent.put)  # type: ignore[arg-type]
            finally:
                sent.put_nowait(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await sent.get()) is not None:
                if message["type"] == "http.response.start":
                    yield Head(message["status"], list(message.get("headers", ())))
                elif message.get("body"):
                    yield message["body"]
            await task
        finally:
            left.set()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


def _scope(asking: Asking) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asking.method,
        "scheme": "http",
        "path": asking.path,
        "raw_path": asking.path.encode(),
        "query_string": asking.query,
        "root_path": "",
        "headers": asking.headers,
        "client": None,
        "server": None,
        "state": {},
    }
