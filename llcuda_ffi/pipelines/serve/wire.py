"""How answers come back to an ingress: each replica keeps one connection to it, on which the pieces of all answers
come in frames.

Ray carries the requests, chooses and counts, and says who died. A message of a stream through Ray takes half a
millisecond of processor time on each side, a frame a few microseconds: those of one step of an engine go out together,
and what has arrived is taken apart in one go.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import struct
from dataclasses import dataclass
from typing import cast

_FRAME = struct.Struct("!IIQB")  # bytes of the notes and of the rest that follow, number of the answer, kind
_HEAD, _BODY, _END = range(3)
_SECRET_BYTES = 32
_VERDICT_S = 10.0  # Ray says by then whether a replica died whose connection is gone


@dataclass(frozen=True)
class Head:
    """The head of an answer."""

    status: int
    headers: list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Reply:
    """Where an answer is to be sent.

    Attributes:
        host, port: of the ingress.
        secret: what it knows its replicas by.
        number: of the answer.
    """

    host: str
    port: int
    secret: bytes
    number: int


class Arriving:
    """An answer that arrives in pieces; used in one event loop.

    Attributes:
        reply: where it is sent.
        notes: what the replica notes of each piece of the body, in their order.
        ended: whether it is whole.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.notes: list[bytes] = []
        self.ended = False
        self._parts: list[Head | bytes] = []
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._patient = False  # waits until the time is over, or the answer

    async def take(self, pause: float) -> list[Head | bytes]:
        """All that has arrived, at least one piece; an empty list after the end. What had arrived is given before the
        exception that ended it.

        Args:
            pause: seconds to wait for more, unless the answer ends before.

        Raises:
            Exception: what `fail` was told.
        """
        if pause and not self.ended and self._error is None:
            self._patient = True
            timer = asyncio.get_running_loop().call_later(pause, self._wake)
            try:
                await self._wait()
            finally:
                timer.cancel()
                self._patient = False
        while not self._parts and not self.ended and self._error is None:
            await self._wait()
        if self._error is not None and not self._parts:
            raise self._error
        parts, self._parts = self._parts, []
        return parts

    def put(self, part: Head | bytes | None) -> None:
        """A piece has arrived; None: it was the last."""
        if part is None:
            self.ended = True
        else:
            self._parts.append(part)
        if self.ended or not self._patient:
            self._wake()

    def fail(self, error: BaseException) -> None:
        """No more comes, unless the answer has ended."""
        if not self.ended and self._error is None:
            self._error = error
            self._wake()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Inbox:
    """The ingress' end of the connections."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()
        self._arriving: dict[int, Arriving] = {}
        self._number = 0

    async def expect(self, host: str) -> Arriving:
        """An answer that is to come; `forget` it at its end.

        Args:
            host: this node's address, where replicas find this process from the first answer on.
        """
        async with self._opening:
            if self._server is None:
                self._server = await asyncio.get_running_loop().create_server(self._connected, host)
        self._number += 1
        port = self._server.sockets[0].getsockname()[1]
        arriving = Arriving(Reply(host, port, self._secret, self._number))
        self._arriving[self._number] = arriving
        return arriving

    def forget(self, arriving: Arriving) -> None:
        """What still comes of an answer is dropped."""
        self._arriving.pop(arriving.reply.number, None)

    def close(self) -> None:
        """Listen no more; connections end at their other ends."""
        if self._server is not None:
            self._server.close()

    def _connected(self) -> _Arrivals:
        return _Arrivals(self._secret, self._arriving)


class _Arrivals(asyncio.Protocol):
    """One replica's connection."""

    def __init__(self, secret: bytes, arriving: dict[int, Arriving]) -> None:
        self._secret, self._arriving = secret, arriving
        self._known = False  # the secret was right
        self._seen: set[int] = set()  # answers that have begun here and not ended
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Take the whole frames of what has come."""
        buffer = self._buffer
        buffer += data
        at = 0
        if not self._known:
            if len(buffer) < _SECRET_BYTES:
                return
            at = _SECRET_BYTES
            self._known = hmac.compare_digest(bytes(buffer[:at]), self._secret)
            if not self._known:
                buffer.clear()
                if self._transport is not None:
                    self._transport.abort()
                return
        with memoryview(buffer) as view:
            while len(view) - at >= _FRAME.size:
                n_notes, size, number, kind = _FRAME.unpack_from(view, at)
                start = at + _FRAME.size
                end = start + n_notes + size
                if end > len(view):
                    break
                self._take(number, kind, bytes(view[start : start + n_notes]), bytes(view[start + n_notes : end]))
                at = end
        del buffer[:at]

    def _take(self, number: int, kind: int, notes: bytes, data: bytes) -> None:
        if kind == _END:
            self._seen.discard(number)
        else:
            self._seen.add(number)
        arriving = self._arriving.get(number)
        if arriving is None:
            return
        if kind == _BODY:
            arriving.notes.append(notes)
            arriving.put(data)
        else:
            arriving.put(_read_head(data) if kind == _HEAD else None)

    def connection_lost(self, error: Exception | None) -> None:
        """Whose answers had begun will not see their ends."""
        lost = ConnectionResetError("the connection from a replica was lost")
        for number in self._seen:
            if (arriving := self._arriving.get(number)) is not None:
                asyncio.get_running_loop().call_later(_VERDICT_S, arriving.fail, lost)


class Outbox:
    """A replica's end: its connections to the ingresses that have asked it."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int, bytes], _Line] = {}
        self._connecting = asyncio.Lock()

    async def to(self, reply: Reply) -> Sending:
        """Where the pieces of an answer are put.

        Raises:
            OSError: the ingress cannot be reached.
        """
        place = (reply.host, reply.port, reply.secret)
        async with self._connecting:
            line = self._lines.get(place)
            if line is None or line.writer.is_closing():
                self._lines = {key: old for key, old in self._lines.items() if not old.writer.is_closing()}
                _, writer = await asyncio.open_connection(reply.host, reply.port)
                writer.write(reply.secret)
                line = self._lines[place] = _Line(writer)
        return Sending(line, reply.number)

    async def close(self) -> None:
        """End the connections."""
        for line in self._lines.values():
            line.flush()
            line.writer.close()
            with contextlib.suppress(OSError):
                await line.writer.wait_closed()


class _Line:
    """A connection, on which what is put within one turn of the event loop goes out in one piece."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._frames: list[bytes] = []

    def put(self, *parts: bytes) -> None:
        if not self._frames:
            asyncio.get_running_loop().call_soon(self.flush)
        self._frames += parts

    def flush(self) -> None:
        frames, self._frames = self._frames, []
        self.writer.write(b"".join(frames))


class Sending:
    """An answer on its way to the ingress."""

    def __init__(self, line: _Line, number: int) -> None:
        self._line, self._number = line, number

    async def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The answer's head; OSError where the connection is lost, as below."""
        texts = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]
        await self._send(_HEAD, json.dumps([status, texts]).encode())

    async def body(self, data: bytes, notes: bytes = b"") -> None:
        """A piece of its body, and what the ingress is to know beside it: both arrive, or neither."""
        await self._send(_BODY, data, notes)

    async def end(self) -> None:
        """It is whole."""
        await self._send(_END, b"")

    async def _send(self, kind: int, data: bytes, notes: bytes = b"") -> None:
        writer = self._line.writer
        if writer.is_closing():
            raise ConnectionResetError("the connection to the ingress was lost")
        self._line.put(_FRAME.pack(len(notes), len(data), self._number, kind), notes, data)
        await writer.drain()


def _read_head(data: bytes) -> Head:
    status, headers = json.loads(data)
    return Head(status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers])
