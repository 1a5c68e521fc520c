"""A restart behind a socket that a service manager holds, as systemd does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from ..support.server_process import JSON, ROOT, C
from ..support.tiny_model import make_tiny_llama

# the pid that LISTEN_PID must name is known only after the fork: the shell keeps it over exec
_AS_SERVICE = 'exec 3<&"$1" && shift && LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'


def _start(model: Path, listener: socket.socket) -> subprocess.Popen[bytes]:
    fd = listener.fileno()
    command = [sys.executable, "-m", "llcuda_ffi", "serve", str(model), "--parallel", "2", "-c", "256"]
    return subprocess.Popen(
        ["bash", "-c", _AS_SERVICE, "service", str(fd), *command], cwd=ROOT, pass_fds=[fd], env=dict(os.environ)
    )


def _ask(port: int, tokens: int) -> socket.socket:
    body = json.dumps({"prompt": "the fox", "max_tokens": tokens, "ignore_eos": True, "stream": True}).encode()
    head = f"POST {C} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in JSON.items())
    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
    connection.sendall(head.encode() + b"\r\n" + body)
    return connection


def _rest(connection: socket.socket) -> bytes:
    with connection:
        data = b""
        while more := connection.recv(1 << 16):
            data += more
    return data


def test_nothing_is_lost(tmp_path: Path) -> None:
    """What runs is finished by the old process; who comes while there is none is answered by the new one."""
    model = tmp_path / "tiny.gguf"
    make_tiny_llama(model)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        first = _start(model, listener)
        running = _ask(port, 200)  # waits in the socket until the server is there
        assert running.recv(1)
        first.send_signal(signal.SIGTERM)
        assert b"[DONE]" in _rest(running)
        assert first.wait(60) == 0
        waiting = _ask(port, 4)
        second = _start(model, listener)
        assert b"[DONE]" in _rest(waiting)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0
