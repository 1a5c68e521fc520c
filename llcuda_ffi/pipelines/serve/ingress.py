"""What stands at Ray's HTTP address: passes requests to replicas, and to another one where a replica dies."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .prefixes import prefix_keys
from .replica import Asking, Head

log = logging.getLogger("llcuda_ffi.server")

_TRIES = 4
# made anew by each replica: the same answer differs in them
_OWN = re.compile(rb'"(?:id|item_id|created|created_at|completed_at)":(?:"[^"]*"|\d+)|"timings":\{[^}]*\}')

# what is asked about a response that is kept
_KEPT = re.compile(r"(/v1)?/responses/(?!input_tokens$)")


class Ingress:
    """Ray Serve calls it with each HTTP request."""

    def __init__(self, replicas: Any, max_body: int) -> None:
        """Take the handle of the replicas, and the largest body in bytes."""
        self._replicas, self._max_body = replicas.options(stream=True), max_body

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._max_body:
                return _refusal(413, f"the body is larger than {self._max_body} bytes", "body_too_large")
        fields = _fields(body)
        if fields.get("previous_response_id") is not None:
            return _refusal(
                400, "previous_response_id: replicas keep no responses; send the whole input", "unsupported"
            )
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if _KEPT.match(path):
            return _refusal(404, f"{path:.100}: replicas keep no responses", "response_not_found")
        more: dict[str, Any] = {}
        if fields.get("stream") is True and "seed" not in fields:
            # whoever goes on with the stream must write the same answer
            more["seed"] = random.getrandbits(31)
        if fields and path.endswith("/responses"):
            more["store"] = False  # the answer says so
        if more:
            body = bytearray(json.dumps({**fields, **more}).encode())
        headers = [(name, value) for name, value in request.headers.raw if name != b"content-length"]
        asking = Asking(request.method, path, request.url.query.encode(), headers, bytes(body))
        pieces = self._pieces(asking, prefix_keys(fields))
        head = cast(Head, await anext(pieces))
        answer = StreamingResponse(_bodies(pieces), head.status)
        answer.raw_headers = head.headers
        return answer

    async def _pieces(self, asking: Asking, keys: list[str]) -> AsyncGenerator[Head | bytes, None]:
        """The answer; where a replica dies another one makes it again, and what was sent is left out."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import ReplicaUnavailableError

        sent = 0  # events
        so_far = hashlib.blake2b()
        headed = False
        for attempt in range(_TRIES):
            replay, again = sent, hashlib.blake2b()
            try:
                async for piece in self._replicas.answer.remote(asking, keys=keys):
                    if isinstance(piece, Head):
                        if not headed:
                            headed = True
                            yield piece
                        continue
                    for event in _events(piece):
                        if replay:
                            replay -= 1
                            again.update(_OWN.sub(b"", event))
                            if not replay and again.digest() != so_far.digest():
                                log.warning("a replica died; its answer is not the same on another one")
                                yield _error_event("the replica died in the middle of the answer: send it again")
                                return
                            continue
                        sent += 1
                        so_far.update(_OWN.sub(b"", event))
                        yield event
                return
            except (RayActorError, ReplicaUnavailableError) as error:
                log.warning("a replica died (%s); attempt %d of %d", type(error).__name__, attempt + 2, _TRIES)
        if headed:
            yield _error_event("replicas died one after the other")
        else:
            yield Head(503, [(b"content-type", b"application/json"), (b"retry-after", b"1")])
            yield bytes(_refusal(503, "replicas died one after the other: try again", "engine_failed").body)


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
