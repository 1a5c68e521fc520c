"""A replica: one model behind the server's ASGI application, asked by the ingress through Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...chat.identity import Identity, answering
from ...server import Models, ServedModel, create_app
from ...server.journal import Journal
from .notes import read_notes, write_notes
from .responses import SharedResponses
from .wire import Outbox, Reply

log = logging.getLogger("llcuda_ffi.server")


@dataclass(frozen=True)
class Asking:
    """An HTTP request on its way to a replica.

    Attributes:
        method, path, query, headers, body: of the request.
        identity: what the answer's ids are made of.
        notes: of each piece of the answer that was sent before its replica died; the next pieces are wanted.
    """

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    identity: Identity = field(default_factory=Identity)
    notes: Sequence[bytes] = ()


class NotContinued(ConnectionError):
    """A replica cannot go on with an answer."""


class Replica:
    """The model, and its application."""

    def __init__(
        self, model: str, name: str | None, settings: Mapping[str, Any], options: Mapping[str, Any], responses: Any
    ) -> None:
        """Load the model.

        Args:
            model: a path that every node has, or a name.
            name: how the API shows it.
            settings: arguments of AsyncLlama.
            options: arguments of create_app.
            responses: the handle of what keeps responses.
        """
        self._model = ServedModel.find(model, name=name, settings={"text": settings})
        self._model.open()
        self._app = create_app(Models([self._model]), responses=SharedResponses(responses), **options)
        self._outbox = Outbox()

    def check_health(self) -> None:
        """Asked by Ray every few seconds: a replica whose engine is dead is replaced."""
        if self._model.failure is not None:
            raise RuntimeError(f"the engine has failed: {self._model.failure}")

    async def answer(self, asking: Asking, keys: list[str], reply: Reply) -> None:
        """Send the answer to the ingress. Cancelling it cancels the request.

        Args:
            keys: for the router (prefixes.py); not used here.
            reply: where the answer is to be sent.

        Raises:
            OSError: the connection to the ingress was lost.
            NotContinued: the answer was begun by another replica, and is another one here.
        """
        sending = await self._outbox.to(reply)
        bodies = [{"type": "http.request", "body": asking.body, "more_body": False}]
        journal, before = Journal(read_notes(asking.notes)), len(asking.notes)
        whole, made = False, 0  # pieces
        refused: NotContinued | None = None

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            await asyncio.Event().wait()  # a client that leaves cancels this call
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            nonlocal whole, made, refused
            if message["type"] == "http.response.start":
                if not before:
                    await sending.head(message["status"], list(message.get("headers", ())))
                elif message["status"] != 200:
                    refused = NotContinued(f"status {message['status']}")
            else:
                if message.get("body"):
                    made += 1
                    notes = journal.take()
                    if made <= before and notes:
                        refused = NotContinued("the same chunks gave fewer events")
                    elif made > before and refused is None:
                        await sending.body(message["body"], write_notes(notes))
                if refused is not None:
                    raise refused
                if not message.get("more_body"):
                    whole = True
                    await sending.end()

        try:
            with answering(asking.identity):
                await self._app(_scope(asking, journal), receive, send)  # type: ignore[arg-type]
        except Exception as error:
            if not whole:
                raise refused or error
            log.exception("after an answer")
        if not whole:
            raise RuntimeError("the application ended without an answer")


def _scope(asking: Asking, journal: Journal) -> dict[str, Any]:
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
        "state": {"journal": journal},
    }
