"""The end of a server under load: what its time does not suffice for ends with an error that says so."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.server_process import JSON, MESSAGES, C, H, Server

ASKED: dict[str, dict[str, Any]] = {
    C: {"prompt": "the fox", "max_tokens": 8000},
    H: {"messages": MESSAGES, "max_tokens": 8000},
    "/v1/responses": {"input": "the fox", "max_output_tokens": 8000},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 8000},
}


@pytest.fixture
def busy(tiny_llama: Path, tmp_path: Path) -> Iterator[tuple[Server, list[tuple[bool, Any]]]]:
    """A server that has a second to end, and answers that take longer, streamed ones and whole ones of each API."""
    log = tmp_path / "log"
    server = Server(log, tiny_llama, "-c", 8192, "--parallel", 8, "--grace", 1, "--access-log")
    connections = []
    for path, fields in ASKED.items():
        for stream in (True, False):
            connection = server.connect()
            body = {**fields, "stream": stream, "ignore_eos": True}
            connection.request("POST", path, json.dumps(body), JSON)
            connections.append((stream, connection))
    answers = [(stream, c.getresponse() if stream else c) for stream, c in connections]
    while server.metric("running") < len(answers):
        pass
    yield server, answers
    for _, connection in connections:
        connection.close()
    assert server.process.wait(30) == 0
    server.stop()
    text = log.read_text()
    assert "Traceback" not in text, text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert sorted(line["status"] for line in lines if line["method"] == "POST") == [200] * 4 + [503] * 4


def _check(answers: list[tuple[bool, Any]]) -> None:
    for stream, answer in answers:
        if stream:
            last = answer.read().strip().split(b"\n")[-1]  # IncompleteRead where the body has no end
            assert b"the server stops" in last
            json.loads(last.removeprefix(b"data: "))
        else:
            whole: http.client.HTTPResponse = answer.getresponse()
            assert whole.status == 503
            assert "the server stops" in json.loads(whole.read())["error"]["message"]


def test_grace_is_over(busy: tuple[Server, list[tuple[bool, Any]]]) -> None:
    """SIGTERM and too little time: streams end with an event of the error, other requests with 503; exit status 0."""
    server, answers = busy
    server.process.send_signal(signal.SIGTERM)
    _check(answers)


def test_second_ctrl_c(busy: tuple[Server, list[tuple[bool, Any]]]) -> None:
    """A second Ctrl-C ends them at once, in the same way."""
    server, answers = busy
    server.process.send_signal(signal.SIGINT)
    server.process.send_signal(signal.SIGINT)
    _check(answers)
