"""uvicorn's HTTP/1.1 protocol with time limits: slow and silent clients do not keep connections for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0
WRITE_SECONDS = 60.0


class BoundedProtocol(H11Protocol):
    """Closes a connection whose request head is not whole in time, or whose client reads nothing for a minute.

    (uvicorn itself limits the head's size, and the time between two requests; bodies are limited where they are read.)
    """

    most_connections = 2048

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
            return
        self._head = self.loop.call_later(HEADER_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # a request's head is whole
            if self._head is not None:
                self._head.cancel()
                self._head = None
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(HEADER_SECONDS, self._late)

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
