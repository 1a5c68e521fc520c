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
from .wire import Outbox, Reply, Sending

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
            BackendFailure: the engine died.
            NotContinued: the answer was begun by another replica, and is another one here.
        """
        journal = Journal(read_notes(asking.notes))
        send = _Sender(await self._outbox.to(reply), journal, len(asking.notes))
        bodies = [{"type": "http.request", "body": asking.body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            await asyncio.Event().wait()  # a client that leaves cancels this call
            raise AssertionError

        try:
            with answering(asking.identity):
                await self._app(_scope(asking, journal), receive, send)
        except Exception as error:
            if not send.whole:
                raise journal.failure or error from None
            log.exception("after an answer")
        if journal.failure is not None:
            raise journal.failure
        if not send.whole:
            raise RuntimeError("the application ended without an answer")

    async def close(self) -> None:
        """Free the model and end the connections."""
        await self._outbox.close()
        await asyncio.to_thread(self._model.close)


class _Sender:
    """Takes an application's messages, and sends the answer without the pieces that were sent before.

    Attributes:
        whole: whether it has been sent to its end.
    """

    def __init__(self, sending: Sending, journal: Journal, before: int) -> None:
        self._sending, self._journal, self._before = sending, journal, before
        self._made = 0  # pieces
        self.whole = False

    async def __call__(self, message: Mapping[str, Any]) -> None:
        journal = self._journal
        if journal.failure is not None:
            return
        if message["type"] == "http.response.start":
            if not self._before:
                await self._sending.head(message["status"], list(message.get("headers", ())))
            elif message["status"] != 200:
                journal.failure = NotContinued(f"status {message['status']}")
            return
        if message.get("body"):
            self._made += 1
            notes = journal.take()
            if self._made > self._before:
                await self._sending.body(message["body"], write_notes(notes))
            elif notes:
                journal.failure = NotContinued("the same chunks gave fewer events")
                return
        if not message.get("more_body"):
            self.whole = True
            await self._sending.end()


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
