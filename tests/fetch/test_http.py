"""Downloads against a loopback server that cuts, stalls, lies and refuses."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import deque
from importlib.util import find_spec
from pathlib import Path

import pytest

from llcuda_ffi.errors import ChecksumError, DownloadError
from llcuda_ffi.fetch import http
from llcuda_ffi.fetch.http import NotThere, download
from llcuda_ffi.fetch.integrity import Expected

from ..support.loopback import Loopback

CONTENT = hashlib.shake_256(b"content").digest(600_000)
WHOLE = Expected(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.01)
    monkeypatch.delenv("LLCUDA_FFI_OFFLINE", raising=False)


def left_over(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_whole_file_in_one_go(loopback: Loopback, tmp_path: Path) -> None:
    """A plain download arrives byte for byte, under its name only."""
    loopback.put("/a.bin", CONTENT)
    assert download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False) == WHOLE.sha256
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert left_over(tmp_path) == ["a"]


def test_cut_connections_are_taken_up_where_they_ended(loopback: Loopback, tmp_path: Path) -> None:
    """Each cut is followed by a Range request for the first missing byte."""
    loopback.put("/a.bin", CONTENT, cuts=deque([200_000, 150_000, 1]))
    download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT
    ranges = [request.range for request in loopback.asked("/a.bin")]
    assert ranges == [None, "bytes=200000-", "bytes=350000-", "bytes=350001-"]


def test_server_without_ranges_starts_again(loopback: Loopback, tmp_path: Path) -> None:
    """A server that ignores Range sends the whole file: what was there is not put before it."""
    loopback.put("/a.bin", CONTENT, cuts=deque([200_000]), ranges=False)
    download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_stalling_server_is_asked_again(loopback: Loopback, tmp_path: Path) -> None:
    """A connection without a byte for the timeout is given up, and the next one goes on."""
    served = loopback.put("/a.bin", CONTENT, pause=1.0, block=250_000)
    download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False, timeout=0.3)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert served.pause
    assert [request.range for request in loopback.asked("/a.bin")][1] == "bytes=250000-"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again(loopback: Loopback, tmp_path: Path, status: int) -> None:
    """Answers that mean "later" are retried."""
    loopback.put("/a.bin", CONTENT, statuses=deque([status, status]))
    download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert len(loopback.asked("/a.bin")) == 3


def test_server_that_stays_busy_is_given_up(loopback: Loopback, tmp_path: Path) -> None:
    """Attempts are bounded, and the message says what to check."""
    loopback.put("/a.bin", CONTENT, statuses=deque([503] * 50))
    with pytest.raises(DownloadError, match=r"failed after 4 attempts \(HTTP 503\).*LLCUDA_FFI_MIRROR"):
        download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert left_over(tmp_path) == []


def test_no_server(tmp_path: Path) -> None:
    """A refused connection is one DownloadError."""
    with pytest.raises(DownloadError, match="check the network"):
        download("http://127.0.0.1:9/a.bin", tmp_path / "a", WHOLE, progress=False)


@pytest.mark.parametrize("url", ["gopher://127.0.0.1/a", "http:///a", "http://[::1/a"])
def test_no_address(tmp_path: Path, url: str) -> None:
    """What is no HTTP address is a DownloadError, not a traceback of the HTTP library."""
    with pytest.raises(DownloadError):
        download(url, tmp_path / "a", WHOLE, progress=False)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, NotThere, "is not there"),
        (403, DownloadError, "check the credentials"),
        (418, DownloadError, "answered HTTP 418"),
    ],
)
def test_final_answers_are_not_retried(
    loopback: Loopback, tmp_path: Path, status: int, kind: type[DownloadError], message: str
) -> None:
    """A refusal is reported at once."""
    loopback.put("/a.bin", CONTENT, statuses=deque([status]))
    with pytest.raises(kind, match=message):
        download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert len(loopback.asked("/a.bin")) == 1


@pytest.mark.parametrize(
    ("served", "message"),
    [
        pytest.param(CONTENT + b"x", "600,001 bytes, expected 600,000", id="oversized"),
        pytest.param(CONTENT[:-1], "599,999 bytes, expected 600,000", id="truncated"),
        pytest.param(CONTENT[:-1] + b"\0", "has sha256", id="tampered"),
    ],
)
def test_another_file_than_pinned(loopback: Loopback, tmp_path: Path, served: bytes, message: str) -> None:
    """What differs from the pin in size or in one byte is refused, and nothing of it stays."""
    loopback.put("/a.bin", served)
    with pytest.raises(ChecksumError, match=message):
        download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert left_over(tmp_path) == []


def test_npm_integrity_is_checked(loopback: Loopback, tmp_path: Path) -> None:
    """The sha512 of the npm registry holds beside the sha256."""
    loopback.put("/a.bin", CONTENT)
    expected = Expected(WHOLE.size, WHOLE.sha256, "sha512-" + "A" * 86 + "==")
    with pytest.raises(ChecksumError, match="integrity"):
        download(loopback.url + "/a.bin", tmp_path / "a", expected, progress=False)


def test_partial_of_another_content_starts_clean(loopback: Loopback, tmp_path: Path) -> None:
    """A partial file whose bytes are wrong costs one more transfer, not a failure."""
    loopback.put("/a.bin", CONTENT)
    (tmp_path / f".fetch-{str(WHOLE.sha256)[:40]}.dead.partial").write_bytes(b"garbage" * 1000)
    download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert [request.range for request in loopback.asked("/a.bin")] == ["bytes=7000-", None]
    assert left_over(tmp_path) == ["a"]


CHILD = """
import sys, pathlib
from llcuda_ffi.fetch.http import download
from llcuda_ffi.fetch.integrity import Expected
url, target, size, sha256 = sys.argv[1:]
download(url, pathlib.Path(target), Expected(int(size), sha256))
"""


def child(loopback: Loopback, target: Path, before: str = "") -> list[str]:
    return [
        *(sys.executable, "-c", before + CHILD, loopback.url + "/a.bin"),
        *(str(target), str(WHOLE.size), str(WHOLE.sha256)),
    ]


def test_killed_download_is_resumed_by_the_next_run(loopback: Loopback, tmp_path: Path) -> None:
    """A process killed with SIGKILL leaves a part that the next one goes on from."""
    served = loopback.put("/a.bin", CONTENT, block=100_000, pause=0.3)
    process = subprocess.Popen(child(loopback, tmp_path / "a"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.glob("*.partial")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a").exists()
    served.pause = 0.0
    download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    resumed = loopback.asked("/a.bin")[-1].range
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").rstrip("-")) > 0
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert left_over(tmp_path) == ["a"]


def test_two_downloads_at_once_never_share_a_file(loopback: Loopback, tmp_path: Path) -> None:
    """Without any lock, two processes that fetch the same file both end with the whole of it."""
    loopback.put("/a.bin", CONTENT, block=100_000, pause=0.05)
    both = [subprocess.Popen(child(loopback, tmp_path / "a"), stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert left_over(tmp_path) == ["a"]


def test_full_disk_is_one_clear_error(loopback: Loopback, tmp_path: Path) -> None:
    """A write that the system refuses (here past the file size limit) is one error that says what to do."""
    loopback.put("/a.bin", CONTENT)
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))\n"
    done = subprocess.run(
        child(loopback, tmp_path / "a", before), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "DownloadError: writing" in last
    assert "LLCUDA_FFI_CACHE" in last
    assert left_over(tmp_path) == []


def test_folder_that_cannot_be_made(loopback: Loopback, tmp_path: Path) -> None:
    """A cache below a plain file cannot be written: the error names the switch."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"cannot be written.*LLCUDA_FFI_CACHE"):
        download(loopback.url + "/a.bin", tmp_path / "file" / "below" / "a", WHOLE, progress=False)


def test_offline_asks_nobody(loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLCUDA_FFI_OFFLINE=1 never touches the network."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    loopback.put("/a.bin", CONTENT)
    with pytest.raises(DownloadError, match="LLCUDA_FFI_OFFLINE is set"):
        download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert loopback.requests == []


@pytest.mark.parametrize("form", ["path", "url"])
def test_local_file(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path or a file URL is copied and verified like a download, also offline."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    source = tmp_path / "with space.bin"
    source.write_bytes(CONTENT)
    name = str(source) if form == "path" else source.as_uri()
    download(name, tmp_path / "out" / "a", WHOLE, progress=False)
    assert (tmp_path / "out" / "a").read_bytes() == CONTENT
    source.write_bytes(CONTENT[::-1])
    with pytest.raises(ChecksumError):
        download(name, tmp_path / "out" / "b", WHOLE, progress=False)
    source.unlink()
    with pytest.raises(NotThere):
        download(name, tmp_path / "out" / "b", WHOLE, progress=False)
    assert left_over(tmp_path / "out") == ["a"]


def test_credentials_stay_with_their_host(loopback: Loopback, tmp_path: Path) -> None:
    """A redirect to another host is followed without the Authorization header."""
    loopback.put("/real.bin", CONTENT)
    elsewhere = loopback.url.replace("127.0.0.1", "localhost") + "/real.bin"
    loopback.put("/a.bin", b"", statuses=deque([302]), headers={"Location": elsewhere})
    download(loopback.url + "/a.bin", tmp_path / "a", WHOLE, headers={"Authorization": "Bearer s"}, progress=False)
    assert loopback.asked("/a.bin")[0].authorization == "Bearer s"
    assert loopback.asked("/real.bin")[0].authorization is None


def test_messages_hide_credentials() -> None:
    """User, password and query of an address are not shown."""
    assert http.shown("https://me:secret@host/a/b.tgz?token=x") == "https://host/a/b.tgz"


def test_progress_in_plain_lines_or_silent(
    loopback: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where stderr is no terminal there are plain lines, and none when silence is asked for."""
    loopback.put("/a.bin", CONTENT)
    download(loopback.url + "/a.bin", tmp_path / "a", WHOLE)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "fetching a.bin (0.6 MB)\nfetched a.bin\n"
    download(loopback.url + "/a.bin", tmp_path / "b", WHOLE, progress=False)
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_progress_bar_on_a_terminal(loopback: Loopback, tmp_path: Path) -> None:
    """On a terminal there is a bar that reaches the end."""
    loopback.put("/a.bin", CONTENT)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(child(loopback, tmp_path / "a"), stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 65536):
            said += block
    except OSError:
        pass  # the other end is closed: Linux reports EIO
    os.close(ours)
    assert process.wait(60) == 0
    assert re.search(rb"a\.bin: 100%.*600k/600k", said)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALL_PROXY", "foo://127.0.0.1:9", "proxy that .*cannot be used .*foo"),
        ("SSL_CERT_FILE", "/no/such/file", "SSL_CERT_FILE .*cannot be used"),
    ],
)
def test_settings_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """A proxy that is no address, or certificates that are not there: one error that names the variable."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(DownloadError, match=said):
        download("https://127.0.0.1:9/a.bin", tmp_path / "a", WHOLE, progress=False)
    assert left_over(tmp_path) == []


@pytest.mark.skipif(bool(find_spec("socksio")), reason="for environments without socksio")
def test_socks_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy needs a package, which the error names."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"ALL_PROXY names cannot be used .*socksio"):
        download("https://127.0.0.1:9/a.bin", tmp_path / "a", WHOLE, progress=False)
