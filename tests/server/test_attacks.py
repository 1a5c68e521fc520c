"""A server under attack: half requests, garbage, floods of connections; running streams go on, nothing is left."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.server.keys import Keys

from ..support.attacks import BODY, CHUNK_BOMBS, ENCODINGS, GARBAGE, HEAD, HUGE_HEADS, SMUGGLED, SOUND
from ..support.server_process import MESSAGES, C, H, Server
from ..support.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny model behind a server whose time limits are short."""
    folder = tmp_path_factory.mktemp("target")
    make_tiny_llama(folder / "m.gguf")
    server = Server(folder / "log", folder / "m.gguf", "-c", 256, "--read-timeout", 1)
    yield server
    assert server.stop() == 0
    assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()


def _talk(server: Server, *parts: bytes, wait: float = 10.0, half_close: bool = False) -> bytes:
    """Send parts; what came back until the server closed or answered."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while b"\r\n\r\n" not in answer:
                data = connection.recv(65536)
                if not data:
                    break
                answer += data
            return answer
        except (ConnectionResetError, BrokenPipeError):
            return b""


NO_REQUESTS = [*GARBAGE, *HUGE_HEADS, *SMUGGLED, *ENCODINGS, *CHUNK_BOMBS]


@pytest.mark.parametrize("data", NO_REQUESTS, ids=range(len(NO_REQUESTS)))
def test_garbage(target: Server, data: bytes) -> None:
    """What is no request, or means two things, is answered with a 4xx or cut off, never with a 5xx or silence."""
    answer = _talk(target, data)
    assert not answer or answer.split()[1].startswith((b"4", b"501")), answer[:200]
    assert target.post(C, prompt="the cat", max_tokens=1)[0] == 200


@pytest.mark.parametrize("data", SMUGGLED, ids=range(len(SMUGGLED)))
def test_no_request_hides_in_another(target: Server, data: bytes) -> None:
    """What two parsers would end at different places is refused, and the connection closed: nothing is read from it."""
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    assert b" 200 " not in answer


def test_slow_heads_and_bodies_are_cut(target: Server) -> None:
    """Nothing sent, half a head, half a second head, a body that stops: each ends by itself in about the limit."""
    kept_alive = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert _talk(target) == b""
    assert _talk(target, HEAD[:20]) == b""
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
        connection.sendall(kept_alive)
        while b'"ok"' not in connection.recv(65536):
            pass
        connection.sendall(HEAD[:20])
        assert connection.recv(1) == b""
    assert b" 408 " in _talk(target, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert b" 408 " in _talk(target, HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")


def test_disconnect_at_each_byte(target: Server) -> None:
    """A request that ends anywhere leaves nothing behind."""
    step = max(1, len(SOUND) // 60)
    for cut in range(0, len(SOUND), step):
        with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
            connection.sendall(SOUND[:cut])
    target.settled()
    assert target.post(C, prompt="the cat", max_tokens=1)[0] == 200


def test_chunk_bomb_and_large_bodies(target: Server) -> None:
    """A body in 200,000 chunks is cut off or refused (by the time limit where it came slowly), one of 15 MB refused
    by its size, one of a million ids by their number."""
    chunks = b"".join(b"1\r\n \r\n" for _ in range(200_000))
    answer = _talk(target, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunks, wait=60)
    assert not answer or answer.split()[1] in (b"400", b"408", b"413")
    sound = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
    assert b" 200 " in _talk(target, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", sound, b"0\r\n\r\n")
    large = b'{"prompt": [' + b"1," * (7 << 20) + b"1]}"
    assert target.send("POST", C, large)[0] == 413
    ids = b'{"prompt": [' + b"1," * (1 << 20) + b"1]}"
    status, answer = target.send("POST", C, ids)
    assert (status, json.loads(answer)["error"]["code"]) == (400, "context_length_exceeded")


def test_stream_goes_on_under_attack(target: Server) -> None:
    """While hundreds of half requests and hostile bodies come, a stream is whole, and is what it is alone."""
    asked = {"prompt": "the cat", "max_tokens": 150, "temperature": 0, "ignore_eos": True, "prefix_cache": False}
    alone = target.post(C, **asked)[1]["choices"][0]["text"]
    rng = random.Random(3)
    stream = target.stream(C, **asked)
    pieces = [next(stream)["choices"][0]["text"]]
    held = []
    for i in range(200):
        connection = socket.create_connection(("127.0.0.1", target.port), timeout=10)
        connection.sendall(SOUND[: rng.randrange(len(SOUND))] if i % 2 else rng.randbytes(300))
        held.append(connection)
        if i % 50 == 0:
            target.send("POST", "/tokenize", b'{"content": "' + b"a " * 200_000 + b'"}')
            target.send("POST", C, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    pieces += [c["text"] for e in stream for c in e["choices"]]
    for connection in held:
        connection.close()
    assert "".join(pieces) == alone


def test_reader_that_never_reads(target: Server) -> None:
    """A client that asks for a stream and reads nothing does not keep its slot for ever."""
    body = json.dumps({"messages": MESSAGES, "max_tokens": 100, "stream": True}).encode()
    connection = socket.create_connection(("127.0.0.1", target.port), timeout=10)
    connection.sendall(HEAD.replace(C.encode(), H.encode()) + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    target.settled()
    connection.close()


def test_keys() -> None:
    """A key is found by any of the headers, in any case of the scheme; an empty one is refused."""
    keys = Keys({"alice": "secret", "bob": "other"})
    for headers in (
        {b"authorization": b"Bearer secret"}, {b"authorization": b"bearer  secret"}, {b"x-api-key": b"secret"},
        {b"api-key": b"secret"}, {b"authorization": b"Basic eDp5", b"x-api-key": b"secret"},
    ):  # fmt: skip
        assert keys.name_of(headers) == "alice"
    assert keys.name_of({b"x-api-key": b"other"}) == "bob"
    for wrong in ({}, {b"authorization": b"secret"}, {b"authorization": b"Bearer "}, {b"x-api-key": b"secre"}):
        assert keys.name_of(wrong) is None
    with pytest.raises(InvalidRequest):
        Keys(["a", " "])


def test_key_file(tmp_path: Path) -> None:
    """Names and keys, comments and blanks; a name that stands twice is an error."""
    path = tmp_path / "keys"
    path.write_text("# ours\nalice s1\n\ns2\n")
    assert Keys.read(path) == {"alice": "s1", "line-4": "s2"}
    path.write_text("alice s1\nalice s2\n")
    with pytest.raises(InvalidRequest, match="line 2"):
        Keys.read(path)


def test_tls_and_unix_socket(tmp_path: Path) -> None:
    """https with a certificate of one's own; a path in place of a port, which is gone afterwards."""
    make_tiny_llama(tmp_path / "m.gguf")
    cert, key, path = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "s"
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=False, capture_output=True, timeout=60,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("openssl is not there to make a certificate")
    command = [sys.executable, "-m", "llcuda_ffi", "serve", str(tmp_path / "m.gguf"), "-c", "256"]
    options = ["--port", "0", "--tls-cert", str(cert), "--tls-key", str(key)]
    context = ssl.create_default_context(cafile=str(cert))
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            address = _address(process)
            assert address.startswith("https://127.0.0.1:")
            port = int(address.rpartition(":")[2].partition("/")[0])
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                secure.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                assert b" 200 " in secure.recv(65536)
        finally:
            process.terminate()
    with subprocess.Popen([*command, "--unix-socket", str(path)], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert str(path) in _address(process)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                assert b" 200 " in connection.recv(65536)
        finally:
            process.terminate()
    assert not path.exists()
    done = subprocess.run([*command, "--tls-cert", str(cert)], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def _address(process: subprocess.Popen[str]) -> str:
    """What the server says when it listens."""
    assert process.stderr is not None
    until = time.monotonic() + 60
    while time.monotonic() < until:
        line = process.stderr.readline()
        if " at " in line:
            return line.split()[-1]
    raise AssertionError("it never listened")
