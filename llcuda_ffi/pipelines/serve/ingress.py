"""What stands at Ray's HTTP address: passes requests to replicas, and to another one where a replica dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ...errors import BackendFailure
from .prefixes import prefix_keys
from .replica import Asking, NotContinued
from .wire import Arriving, Head, Inbox

log = logging.getLogger("llcuda_ffi.server")

_TRIES = 4
_MOST_RESPONSES = 1000  # whose prompts are known

# pieces of streams that go out in a second: through Ray's proxy each costs it and the ingress a millisecond together,
# HAProxy takes them from the ingress' own socket
_DIRECT = "1" in (os.environ.get("RAY_SERVE_ENABLE_HA_PROXY"), os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS"))
_PIECES_PER_S = 2000 if _DIRECT else 600

_RESPONSE_ID = re.compile(rb'"id":"(resp_[^"]*)"')


class Ingress:
    """Ray Serve calls it with each HTTP request."""

    def __init__(self, replicas: Any, max_body: int) -> None:
        """Take the handle of the replicas, and the largest body in bytes."""
        self._replicas, self._max_body = replicas, max_body
        self._inbox, self._host = Inbox(), _node_address()
        self._streams = 0  # that run
        self._prompts: OrderedDict[str, list[str]] = OrderedDict()  # the keys of responses by their ids

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._max_body:
                return _refusal(413, f"the body is larger than {self._max_body} bytes", "body_too_large")
        fields = _fields(body)
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        headers = [(name, value) for name, value in request.headers.raw if name != b"content-length"]
        asking = Asking(request.method, path, request.url.query.encode(), headers, bytes(body))
        keys = prefix_keys(fields, self._prompts.get(str(fields.get("previous_response_id")), ()))
        pieces = self._pieces(asking, keys)
        head = cast(Head, await anext(pieces))
        answer = StreamingResponse(_bodies(pieces), head.status)
        answer.raw_headers = head.headers
        return answer

    async def _pieces(self, asking: Asking, keys: list[str]) -> AsyncGenerator[Head | bytes, None]:
        """The answer, a stream in pieces; where a replica dies another one makes it, of a stream what was not sent."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import ReplicaUnavailableError

        headed, why = False, ""
        for attempt in range(_TRIES):
            arriving = await self._inbox.expect(self._host)
            try:
                async with contextlib.aclosing(self._answer(asking, arriving, keys)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, bytes):
                            self._note(asking.path, piece, keys)
                            yield piece
                        elif not headed:
                            headed = True
                            yield piece
                        elif piece.status != 200:
                            raise NotContinued(f"status {piece.status}")
                return
            except (RayActorError, ReplicaUnavailableError, BackendFailure, OSError) as error:
                if headed:
                    asking = replace(asking, notes=[*asking.notes, *arriving.notes])
                cause = getattr(error, "cause", error)  # of an exception that came from a replica
                why = f"replicas failed one after the other, the last by {type(cause).__name__}: {cause}"[:500]
                log.warning("a replica failed (%s); attempt %d of %d", type(cause).__name__, attempt + 2, _TRIES)
        if headed:
            yield _error_event(why)
        else:
            yield Head(503, [(b"content-type", b"application/json"), (b"retry-after", b"1")])
            yield bytes(_refusal(503, f"{why}: try again", "engine_failed").body)

    async def _answer(self, asking: Asking, arriving: Arriving, keys: list[str]) -> AsyncGenerator[Head | bytes, None]:
        """One replica's answer: its head unless it goes on with one, then the body; what is no stream comes in one
        piece, when it is whole."""
        called = self._replicas.answer.remote(asking, keys=keys, reply=arriving.reply)
        outcome = asyncio.ensure_future(_outcome(called, arriving))
        head: Head | None = None
        kept: list[bytes] = []
        sent = streams = len(asking.notes) > 0
        self._streams += streams
        try:
            while parts := await arriving.take(self._streams / _PIECES_PER_S if sent and streams else 0):
                if isinstance(parts[0], Head):
                    head = cast(Head, parts.pop(0))
                    streams = any(name == b"content-type" and b"event-stream" in value for name, value in head.headers)
                    self._streams += streams
                    if streams:
                        yield head
                kept += cast("list[bytes]", parts)
                if streams and kept:
                    sent = True
                    yield b"".join(kept)
                    kept = []
            if head is not None and not streams:
                yield head
                yield b"".join(kept)
        finally:
            self._streams -= streams
            self._inbox.forget(arriving)
            if not arriving.ended:
                called.cancel()
                outcome.cancel()

    def _note(self, path: str, piece: bytes, keys: list[str]) -> None:
        """Remember the prompt of a response: a later one that goes on from it finds its replica."""
        if path.endswith("/responses") and (found := _RESPONSE_ID.search(piece)) is not None:
            self._prompts[found[1].decode()] = keys
            if len(self._prompts) > _MOST_RESPONSES:
                self._prompts.popitem(last=False)


async def _outcome(called: Any, arriving: Arriving) -> None:
    try:
        await called
    except Exception as error:
        arriving.fail(error)


def _node_address() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


async def _bodies(pieces: AsyncGenerator[Head | bytes, None]) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            yield cast(bytes, piece)  # the head came first
    finally:
        await pieces.aclose()


def _fields(body: bytearray) -> dict[str, Any]:
    """The body's fields; none where it is no object: the replica says what is wrong with it."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(status: int, message: str, code: str) -> Response:
    kind = "service_unavailable" if status == 503 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def _error_event(message: str) -> bytes:
    return b"data: " + bytes(_refusal(503, message, "engine_failed").body) + b"\n\n"
