"""A `llcuda-ffi serve` process to be asked over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
JSON = {"Content-Type": "application/json"}
SLOTS = 16
MESSAGES = [{"role": "user", "content": "Say hello."}]
C, H = "/v1/completions", "/v1/chat/completions"


class Server:
    """A `llcuda-ffi serve` process."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self._log = log.open("w+b")
        command = [sys.executable, "-m", "llcuda_ffi", "serve", *map(str, arguments), "--port", "0"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self._log, env=environment)
        self.port = 0
        until = time.monotonic() + 90
        while not self.port:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", self.log())
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            self.port = int(found.group(1)) if found else 0
            time.sleep(0.05)
        while self.send("GET", "/health")[0] != 200:
            time.sleep(0.05)

    def log(self) -> str:
        """What it wrote to stderr."""
        self._log.seek(0)
        return self._log.read().decode()

    def connect(self) -> http.client.HTTPConnection:
        """A connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """A status and a body; (0, b"") when nobody listens yet."""
        connection = self.connect()
        try:
            connection.request(method, path, body, {**JSON, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionRefusedError:
            return 0, b""
        finally:
            connection.close()

    def post(self, path: str, /, **fields: Any) -> tuple[int, Any]:
        """A status and the JSON."""
        status, body = self.send("POST", path, json.dumps(fields).encode())
        return status, json.loads(body)

    def stream(self, path: str, /, **fields: Any) -> Iterator[dict[str, Any]]:
        """The events of a stream, as they come; [DONE] must end it."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps({**fields, "stream": True}), JSON)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            for line in answer:
                if line.strip() == b"data: [DONE]":
                    assert answer.read() == b"\n"
                    return
                if line.strip():
                    yield json.loads(line.removeprefix(b"data: "))
            raise AssertionError("the stream has no end")
        finally:
            connection.close()

    def raw_stream(self, path: str, /, **fields: Any) -> Iterator[dict[str, Any]]:
        """The events of a stream that ends without [DONE], each with its type where it has one."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps({**fields, "stream": True}), JSON)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        finally:
            connection.close()

    def headers(self, path: str, method: str = "GET", /, **headers: str) -> dict[str, str]:
        """The headers of an answer, by their names in lower case."""
        connection = self.connect()
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            return {name.lower(): value for name, value in answer.headers.items()}
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        text = self.send("GET", "/metrics")[1].decode()
        found = re.search(rf"^llcuda_ffi_{name} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found.group(1))

    def settled(self) -> None:
        """Wait until nothing runs."""
        until = time.monotonic() + 30
        while self.metric("running") or self.metric("queued") or self.metric("http_inside"):
            assert time.monotonic() < until, "requests are still running"
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self._log.close()
