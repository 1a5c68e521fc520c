"""An HTTP server on 127.0.0.1 that serves bytes with real Range requests, and misbehaves when told to."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOCK = 64 * 1024


@dataclass
class Served:
    """One file of the server, and how it is served.

    `cuts`: each entry ends one response after so many bytes. `statuses`: each entry is answered once instead
    of the file. `pause`: seconds between blocks of `block` bytes. `ranges`: whether Range is honoured.
    """

    content: bytes
    cuts: deque[int] = field(default_factory=deque)
    statuses: deque[int] = field(default_factory=deque)
    pause: float = 0.0
    block: int = BLOCK
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    needs_authorization: str | None = None


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class Loopback:
    """The server: put files into `files`, read what it was asked from `requests`."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []
        outer = self

        class Handler(_Handler):
            server_state = outer

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def put(self, path: str, content: bytes | Path, **how: object) -> Served:
        """Serve a file at a path."""
        data = content.read_bytes() if isinstance(content, Path) else content
        self.files[path] = Served(data, **how)  # type: ignore[arg-type]
        return self.files[path]

    def asked(self, path: str, method: str = "GET") -> list[Request]:
        """The requests for a path."""
        return [request for request in self.requests if request.path == path and request.method == method]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: a client that is killed resets its connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Loopback

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        state = self.server_state
        asked = Request(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        state.requests.append(asked)
        served = state.files.get(self.path)
        if served is None:
            return self._empty(404)
        if served.needs_authorization not in (None, asked.authorization):
            return self._empty(401)
        if served.statuses:
            return self._empty(served.statuses.popleft(), served.headers)
        content, start = served.content, 0
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.range or "") if served.ranges else None
        if found:
            start = int(found[1])
            if start >= len(content):
                return self._empty(416)
            end = min(int(found[2] or len(content) - 1), len(content) - 1)
            content = content[start : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(served.content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        for name, value in served.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self._send(served, content)
        return None

    def _send(self, served: Served, content: bytes) -> None:
        cut = served.cuts.popleft() if served.cuts else None
        if cut is not None and cut < len(content):
            content = content[:cut]
            self.close_connection = True
        try:
            for at in range(0, len(content), served.block):
                self.wfile.write(content[at : at + served.block])
                self.wfile.flush()
                if served.pause:
                    time.sleep(served.pause)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
