"""What stands at Ray's HTTP address: passes requests to replicas, and to another one where a replica dies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .prefixes import prefix_keys
from .replica import Asking
from .wire import Arriving, Head, Inbox

log = logging.getLogger("llcuda_ffi.server")

_TRIES = 4
_MOST_RESPONSES = 1000  # whose prompts are known

# pieces of streams that go out in a second: through Ray's proxy each costs it and the ingress a millisecond together,
# HAProxy takes them from the ingress' own socket
_DIRECT = "1" in (os.environ.get("RAY_SERVE_ENABLE_HA_PROXY"), os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS"))
_PIECES_PER_S = 3000 if _DIRECT else 600

# made anew by each replica: the same answer differs in them
_OWN = re.compile(rb'"(?:id|item_id|created|created_at|completed_at)":(?:"[^"]*"|\d+)|"timings":\{[^}]*\}')
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
        if fields.get("stream") is True and "seed" not in fields:
            # whoever goes on with the stream must write the same answer
            body = bytearray(json.dumps({**fields, "seed": random.getrandbits(31)}).encode())
        headers = [(name, value) for name, value in request.headers.raw if name != b"content-length"]
        asking = Asking(request.method, path, request.url.query.encode(), headers, bytes(body))
        keys = prefix_keys(fields, self._prompts.get(str(fields.get("previous_response_id")), ()))
        pieces = self._pieces(asking, keys)
        head = cast(Head, await anext(pieces))
        answer = StreamingResponse(_bodies(pieces), head.status)
        answer.raw_headers = head.headers
        return answer

    async def _pieces(self, asking: Asking, keys: list[str]) -> AsyncGenerator[Head | bytes, None]:
        """The answer, a stream in pieces; where a replica dies another one makes it again, and what was sent is left
        out."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import ReplicaUnavailableError

        stream = _Stream()
        for attempt in range(_TRIES):
            stream.again()
            try:
                async with contextlib.aclosing(self._answer(asking, keys)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Head):
                            if not stream.headed:
                                stream.headed = True
                                yield piece
                            continue
                        self._note(asking.path, piece, keys)
                        new = stream.new(piece)
                        if new is None:
                            log.warning("a replica died; its answer is not the same on another one")
                            yield _error_event("the replica died in the middle of the answer: send it again")
                            return
                        if new:
                            yield new
                return
            except (RayActorError, ReplicaUnavailableError, OSError) as error:
                log.warning("a replica died (%s); attempt %d of %d", type(error).__name__, attempt + 2, _TRIES)
        if stream.headed:
            yield _error_event("replicas died one after the other")
        else:
            yield Head(503, [(b"content-type", b"application/json"), (b"retry-after", b"1")])
            yield bytes(_refusal(503, "replicas died one after the other: try again", "engine_failed").body)

    async def _answer(self, asking: Asking, keys: list[str]) -> AsyncGenerator[Head | bytes, None]:
        """One replica's answer: its head, then the body; what is no stream comes in one piece, when it is whole."""
        arriving = await self._inbox.expect(self._host)
        called = self._replicas.answer.remote(asking, keys=keys, reply=arriving.reply)
        outcome = asyncio.ensure_future(_outcome(called, arriving))
        head: Head | None = None
        kept, sent, streams = [], False, False
        try:
            while parts := await arriving.take(self._streams / _PIECES_PER_S if sent and streams else 0):
                if head is None:
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


class _Stream:
    """What was sent of a stream, and whether another replica's answer goes on from there."""

    def __init__(self) -> None:
        self.headed = False
        self._sent, self._so_far = 0, hashlib.blake2b()  # events
        self.again()

    def again(self) -> None:
        """A replica begins the answer."""
        self._replay, self._again = self._sent, hashlib.blake2b()

    def new(self, piece: bytes) -> bytes | None:
        """What of a piece was not sent yet; None where the answer is not the one that was begun."""
        new = []
        for event in _events(piece):
            own = _OWN.sub(b"", event)
            if not self._replay:
                self._sent += 1
                self._so_far.update(own)
                new.append(event)
                continue
            self._replay -= 1
            self._again.update(own)
            if not self._replay and self._again.digest() != self._so_far.digest():
                return None
        return b"".join(new)


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


def _events(piece: bytes) -> list[bytes]:
    """The events of a piece of a stream; a body that is none is one."""
    return [event + b"\n\n" for event in piece.split(b"\n\n") if event] if piece.endswith(b"\n\n") else [piece]


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
