"""Server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import error_dict, left_to_another, stopping
from .gate import Gate

_T = TypeVar("_T")


class ClientLeft(Exception):
    """The connection was closed before the answer was ready."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` gives; it is cancelled when the client closes the connection.

    It runs in the task that asks, at once: as a task of its own it would begin only after everything else that is
    ready, so that of many requests that come together none would be submitted before the last one is read.

    Raises:
        ClientLeft: it did.
    """
    asking = asyncio.current_task()
    assert asking is not None
    left = False

    def leave(watch: asyncio.Future[None]) -> None:
        nonlocal left
        if not watch.cancelled():
            left = True
            asking.cancel()

    watch = asyncio.ensure_future(_left(receive))
    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not left or (sys.version_info >= (3, 11) and asking.uncancel()):
            raise  # by somebody else
        raise ClientLeft from None
    finally:
        watch.remove_done_callback(leave)
        if not watch.done():
            watch.cancel()
            await asyncio.wait({watch})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def merged(streams: Sequence[AsyncGenerator[_T, None]]) -> AsyncGenerator[tuple[int, _T], None]:
    """What several streams give, as it comes, with the number of each."""
    if len(streams) == 1:
        try:
            async for item in streams[0]:
                yield 0, item
        finally:
            await streams[0].aclose()
        return
    queue: asyncio.Queue[tuple[int, list[_T], BaseException | None]] = asyncio.Queue()

    async def pump(i: int) -> None:
        try:
            async for item in streams[i]:
                queue.put_nowait((i, [item], None))
            queue.put_nowait((i, [], None))
        except Exception as error:
            queue.put_nowait((i, [], error))
        finally:
            await streams[i].aclose()

    tasks = [asyncio.ensure_future(pump(i)) for i in range(len(streams))]
    try:
        left = len(tasks)
        while left:
            i, items, error = await queue.get()
            if error is not None:
                raise error
            if not items:
                left -= 1
            for each in items:
                yield i, each
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


# made once: json.dumps makes an encoder for each call with arguments
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}  # to Unicode and to httpx's iter_lines


def to_json(value: Any) -> str:
    """A value as JSON, on one line for every client."""
    text = _encode(value)
    if not text.isascii():
        for end, escape in _LINE_ENDS.items():
            text = text.replace(end, escape)
    return text


def event(value: dict[str, Any]) -> bytes:
    """One event."""
    return f"data: {to_json(value)}\n\n".encode()


class ChunkWriter:
    """Writes the events of one OpenAI stream. What all of them have in common is JSON once."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = f'data: {to_json(head)[:-1]},"choices":['

    def choice(self, value: dict[str, Any], **more: Any) -> bytes:
        """A chunk with one choice; `more`: further fields of the chunk."""
        end = f"],{to_json(more)[1:]}" if more else "]}"
        return f"{self._head}{to_json(value)}{end}\n\n".encode()

    def text(self, index: int, start: str, text: str | None, end: str) -> bytes:
        """A chunk that is nothing but text, between the JSON before and after it: nearly all chunks are."""
        return f'{self._head}{{"index":{index},{start}{to_json(text)}{end}]}}\n\n'.encode()

    def last(self, usage: dict[str, Any], timings: dict[str, Any]) -> bytes:
        """The chunk with the usage, which has no choices."""
        return f"{self._head}],{to_json({'usage': usage, 'timings': timings})[1:]}\n\n".encode()


def error_event(error: BaseException) -> bytes:
    """An exception inside a stream as OpenAI's clients read it."""
    return event(error_dict(error)[1])


DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends events as they come. Waits for the first one, so that what is refused gets its status."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        held: contextlib.AsyncExitStack,
        gate: Gate,
        error: Callable[[BaseException], bytes] = error_event,
    ) -> None:
        """Take the events.

        Args:
            held: what they need; closed after the last one.
            gate: knows whether the server is stopping.
            error: writes the event of an exception inside the stream.
        """
        # the second header: nginx would keep events back
        super().__init__(None, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._held, self._gate, self._error = events, held, gate, error
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            try:
                await while_connected(receive, self._send(scope, send))
            except ClientLeft:
                pass
            except asyncio.CancelledError:
                if not (self._started and self._gate.closing):
                    raise
                await send({"type": "http.response.body", "body": self._error(stopping()), "more_body": False})

    async def _send(self, scope: Scope, send: Send) -> None:
        events = self._events
        try:
            try:
                async for data in events:
                    if not self._started:
                        self._started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except Exception as error:
                if not self._started:
                    raise
                if not left_to_another(scope, error):
                    await send({"type": "http.response.body", "body": self._error(error), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await events.aclose()
