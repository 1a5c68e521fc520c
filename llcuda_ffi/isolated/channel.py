"""Messages between two processes over a socket: a length of four bytes (big endian), then a list of them in JSON.

A length whose highest bit is set is that of plain bytes, which belong to the first message after them. JSON, because
the other side is trusted for data only: nothing that it sends is ever run. What any thread sends is gathered, encoded
and written by one, so that a token of each of many streams costs the engine next to nothing.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

MOST_BYTES = 1 << 30
_RAW = 1 << 31


class ChannelClosed(Exception):
    """The other side is gone, or sent what is no message."""


class Channel:
    """One end of a connection."""

    def __init__(self, connection: socket.socket, plain: Callable[[Any], Any]) -> None:
        """
        Args:
            plain: makes what JSON can hold of an object that it cannot.
        """
        self._socket = connection
        self._encode = json.JSONEncoder(separators=(",", ":"), default=plain).encode
        self._waiting: deque[tuple[Any, bytes]] = deque()
        self._rest = b""  # of a message that was sent in part
        self._sending = threading.Lock()
        self._work = threading.Event()
        self._ended = False
        self._writer = threading.Thread(target=self._write, name="llcuda_ffi-channel", daemon=True)
        self._writer.start()

    def send(self, message: Any, blob: bytes = b"", *, now: bool = False) -> None:
        """Queue a message; never blocks. What is sent after the other side has gone is lost.

        Args:
            blob: bytes that go with it, at most MOST_BYTES.
            now: encode and write it in this thread where that can be done at once, which saves waking the other one.
        """
        self._waiting.append((message, blob))
        if now and self._sending.acquire(blocking=False):
            try:
                if not self._rest:
                    raw = self._gathered()
                    self._rest = raw[self._socket.send(raw, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._rest = raw
            except OSError:
                return  # the reader notices too, and says so
            finally:
                self._sending.release()
            if not (self._rest or self._waiting):
                return
        if not self._work.is_set():  # one wake for all that a step sends
            self._work.set()

    def _gathered(self) -> bytes:
        """Everything that waits, as one frame where no bytes are among it."""
        frames: list[bytes] = []
        parts: list[Any] = []
        while self._waiting:
            message, blob = self._waiting.popleft()
            if blob:
                frames += [self._frame(parts), (len(blob) | _RAW).to_bytes(4, "big"), blob]
                parts = []
            parts.append(message)
        last = self._frame(parts)
        return b"".join([*frames, last]) if frames else last

    def _frame(self, parts: list[Any]) -> bytes:
        if not parts:
            return b""
        raw = self._encode(parts).encode()
        return len(raw).to_bytes(4, "big") + raw

    def _write(self) -> None:
        while not self._ended:
            self._work.wait()
            self._work.clear()
            with self._sending:
                raw, self._rest = self._rest + self._gathered(), b""
                try:
                    self._socket.sendall(raw)
                except OSError:
                    return

    def messages(self) -> Iterator[tuple[Any, bytes]]:
        """The other side's messages with the bytes that belong to them, until it closes.

        Raises:
            ChannelClosed: it sent what is no message.
        """
        buffer, start, blob = bytearray(), 0, b""
        while True:
            while len(buffer) - start >= 4:
                head = int.from_bytes(buffer[start : start + 4], "big")
                size = head & ~_RAW
                if size > MOST_BYTES:
                    raise ChannelClosed(f"a message of {size} bytes")
                if len(buffer) - start - 4 < size:
                    break
                raw = bytes(buffer[start + 4 : start + 4 + size])
                start += 4 + size
                if head & _RAW:
                    blob = raw
                    continue
                try:
                    messages = json.loads(raw)
                except (ValueError, RecursionError) as error:
                    raise ChannelClosed(f"no JSON: {error}") from None
                if not isinstance(messages, list):
                    raise ChannelClosed("no list of messages")
                for message in messages:
                    yield message, blob
                    blob = b""
            del buffer[:start]
            start = 0
            try:
                block = self._socket.recv(1 << 18)
            except OSError:
                return
            if not block:
                return
            buffer += block

    def close(self) -> None:
        """End the connection and its thread."""
        self._ended = True
        self._work.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if threading.current_thread() is not self._writer:
            self._writer.join()
        self._socket.close()
