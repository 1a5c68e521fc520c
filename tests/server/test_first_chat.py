"""The process that renders chat templates: there before the first chat, and nobody's slot while it is slow."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.server_process import JSON, MESSAGES, H, Server


@pytest.fixture
def fresh(tiny_llama: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that was asked nothing yet."""
    server = Server(tmp_path / "log", tiny_llama, "-c", 256, "--parallel", 2)
    yield server
    assert server.stop() == 0


def _renderer(server: Server) -> int:
    """The process that renders for a server."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", name, "cmdline").read_bytes()
            parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == server.process.pid and b"render_process.py" in command:
            return int(name)
    raise AssertionError("nothing renders")


def test_clients_that_leave_while_it_renders(fresh: Server) -> None:
    """A chat whose client has left frees its room in the queue at once, though its template is not rendered yet."""
    renderer = _renderer(fresh)
    os.kill(renderer, signal.SIGSTOP)
    try:
        asked: list[tuple[str, dict[str, Any]]] = [
            (H, {"messages": MESSAGES, "stream": True}),
            (H, {"messages": MESSAGES}),
            ("/v1/messages", {"messages": MESSAGES, "max_tokens": 4, "stream": True}),
            ("/v1/responses", {"input": "a", "stream": True}),
        ]
        connections = []
        for path, fields in asked:
            connections.append(fresh.connect())
            connections[-1].request("POST", path, json.dumps(fields), JSON)
        while fresh.metric("http_inside") < len(asked):
            pass
        for connection in connections:
            connection.close()
        fresh.settled()
        assert _renderer(fresh) == renderer  # it was still stopped
    finally:
        os.kill(renderer, signal.SIGCONT)
    assert fresh.post(H, messages=MESSAGES, max_tokens=2)[0] == 200
