"""HTTP itself: forms of requests that are seldom sent and that a server has to take."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from ..support.server_process import Server


def _ask(server: Server, head: str) -> tuple[int, bytes]:
    """A status and a body; the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall((head + "Host: a\r\n\r\n").encode())
        data = b""
        while more := connection.recv(1 << 16):
            data += more
    first, _, body = data.partition(b"\r\n\r\n")
    return int(first.split()[1]), body


@pytest.mark.parametrize("target", ["http://a/v1/models", "HTTP://127.0.0.1:1/v1/models?x=1", "http://[::1]:80/models"])
def test_absolute_target(server: Server, target: str) -> None:
    """A target as it is sent to a proxy means its path."""
    status, body = _ask(server, f"GET {target} HTTP/1.1\r\nConnection: close\r\n")
    assert status == 200
    assert json.loads(body)["object"] == "list"


def test_absolute_target_without_a_path(server: Server) -> None:
    """Then it is the page."""
    assert _ask(server, "GET http://a HTTP/1.1\r\nConnection: close\r\n")[0] == 200


def test_upgrade_is_passed_over(server: Server) -> None:
    """Java's client asks for HTTP/2 with its first request: it is answered in HTTP/1.1, and nothing is logged."""
    before = server.log()
    upgrade = "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    assert _ask(server, f"GET /health HTTP/1.1\r\n{upgrade}")[0] == 200
    assert server.log() == before


def test_too_long_in_the_words_that_clients_look_for(server: Server) -> None:
    """litellm, and what is built on it, knows the error by OpenAI's sentence; Claude Code by Anthropic's."""
    long = [{"role": "user", "content": "word " * 2000}]
    status, answer = server.post("/v1/chat/completions", messages=long)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "this model's maximum context length is 512" in answer["error"]["message"]
    status, answer = server.post("/v1/messages", messages=long, max_tokens=4)
    assert status == 400
    assert answer["error"]["message"].startswith("prompt is too long")
    assert (
        "this model's maximum context length" in server.post("/v1/embeddings", input="a " * 999)[1]["error"]["message"]
    )


def test_list_of_models(server: Server) -> None:
    """With a slash at the end it is the list too; each entry says its state as llama.cpp's router does."""
    models = json.loads(server.send("GET", "/v1/models/")[1])["data"]
    assert {m["status"]["value"] for m in models} == {"loaded"}


def test_first_name(server: Server, smollm2: Path) -> None:
    """A model that --alias has given another name is found by its first one too."""
    assert json.loads(server.send("GET", f"/v1/models/{smollm2.stem}")[1])["id"] == "smol"


def test_responses_need_something_to_answer(server: Server) -> None:
    """Neither input nor instructions nor a response to go on from: 400."""
    status, answer = server.post("/v1/responses", model="smol")
    assert (status, answer["error"]["code"]) == (400, "invalid_value")
