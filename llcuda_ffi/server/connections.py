"""uvicorn's HTTP/1.1 protocol with time limits: slow and silent clients do not keep connections for ever."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
WRITE_SECONDS = 60.0
# read at a time: h11 takes as long for a small chunk of a body as for a large one, and the event loop waits for it
_READ_BYTES = 8 << 10
_MOST_CHUNK_LINES = 50_000
_MOST_HEAD = 64 << 10
_ABSOLUTE = re.compile(rb"(?i:https?)://[^/?]*(.*)")


class _StrictConnection(h11.Connection):
    """Refuses heads that another parser may end elsewhere: a request could hide in them (RFC 9112, 11.2)."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE:
            head = self.trailing_data[0].partition(b"\r\n\r\n")[0]
            if head.count(b"\n") != head.count(b"\r\n"):
                raise h11.RemoteProtocolError("a line of the head ends without CR")
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = [name for name, _ in event.headers]
            if b"content-length" in names and b"transfer-encoding" in names:
                raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding")
            absolute = _ABSOLUTE.match(event.target)
            if absolute is not None:  # as to a proxy, which every server has to take (RFC 9112, 3.2.2)
                target = b"/" + absolute[1].removeprefix(b"/")
                event = h11.Request(
                    method=event.method, target=target, headers=event.headers, http_version=event.http_version
                )
        return event


class BoundedProtocol(H11Protocol):
    """Closes a connection whose request head is not whole in time, whose client reads nothing for a minute, or whose
    body comes in tens of thousands of chunks.

    (uvicorn itself limits the head's size, and the time between two requests; bodies are limited where they are read.)
    """

    most_connections = 2048
    head_seconds = HEAD_SECONDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = _StrictConnection(h11.SERVER, _MOST_HEAD)
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None
        self._chunk_lines = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
            return
        if hasattr(transport, "max_size"):  # asyncio's own, not uvloop's
            transport.max_size = _READ_BYTES
        self._head = self.loop.call_later(self.head_seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():  # it was refused
            return
        if self.conn.their_state is not h11.IDLE:  # a request's head is whole
            if self._head is not None:
                self._head.cancel()
                self._head = None
            self._count_chunks(data)
        elif self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self._late)

    def _should_upgrade(self) -> bool:
        return False  # HTTP/1.1 is what there is; Java's client asks for h2c each time, which is no word in the log

    def _count_chunks(self, data: bytes) -> None:
        if self.conn.their_state is not h11.SEND_BODY:
            self._chunk_lines = 0
        elif (b"transfer-encoding", b"chunked") in self.headers:
            self._chunk_lines += data.count(b"\r\n")
            if self._chunk_lines > _MOST_CHUNK_LINES:
                self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write is not None:
            self._write.cancel()
            self._write = None

    def _late(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()

    def _cancel(self) -> None:
        for timer in (self._head, self._write):
            if timer is not None:
                timer.cancel()
        self._head = self._write = None
