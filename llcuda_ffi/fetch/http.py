"""Downloads over HTTP: resumed with Range, cut off at the expected size, hashed while they stream."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

from ..errors import ChecksumError, DownloadError
from .cache import disk_error, offline
from .integrity import BLOCK, Digest, Expected
from .partial import partial_file
from .progress import Progress

if TYPE_CHECKING:
    import httpx2

ATTEMPTS_WITHOUT_PROGRESS = 4
ATTEMPTS = 40
BACKOFF_SECONDS = 0.5
BACKOFF_LIMIT = 8.0
CONNECT_SECONDS = 15.0
READ_SECONDS = 60.0
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class NotThere(DownloadError):
    """The server answered that it has no such file; another address may have it."""


def shown(url: str) -> str:
    """A URL fit for a message: without credentials and query."""
    parts = urlsplit(url)
    if not parts.netloc:
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def client(headers: Mapping[str, str] | None = None, timeout: float = READ_SECONDS) -> httpx2.Client:
    """An HTTP client that follows redirects, honours proxies and never asks for compression.

    Raises:
        DownloadError: The proxy or the certificates that the environment names cannot be used.
    """
    import httpx2

    try:
        return httpx2.Client(
            headers={"Accept-Encoding": "identity", "User-Agent": "llcuda-ffi", **(headers or {})},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            follow_redirects=True,
        )
    except OSError as error:
        raise DownloadError(
            f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be used ({error}): mend or unset it"
        ) from error
    except (ImportError, ValueError, httpx2.InvalidURL) as error:  # socks without its package, no address
        raise DownloadError(
            f"the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used ({error}): mend or unset it"
        ) from error


def download(
    url: str,
    target: Path,
    expected: Expected,
    *,
    label: str | None = None,
    headers: Mapping[str, str] | None = None,
    progress: bool | None = None,
    timeout: float = READ_SECONDS,
) -> str:
    """Fetch a URL (or a local file) into `target`, verified; `target` appears whole or not at all.

    Args:
        url: http(s) or file URL, or the path of a local file.
        target: Where the file goes. Its folder also holds the partial file.
        expected: Size and hashes; a transfer that outgrows the size is broken off.
        label: What the progress bar calls it.
        headers: Sent to the first host only (redirects to another host drop credentials).
        progress: False for silence.
        timeout: Seconds without a byte after which a connection is given up and taken up again.

    Returns:
        The sha256 of the file.

    Raises:
        DownloadError: The server cannot be reached, refuses, or keeps cutting the transfer off.
        ChecksumError: What arrived is not what was expected.
    """
    try:
        local = _local(url)
    except ValueError as error:
        raise DownloadError(f"{url} is no address to fetch from ({error})") from error
    key = expected.sha256 or hashlib.sha256(url.encode()).hexdigest()
    name = label or unquote(urlsplit(url).path.rpartition("/")[2]) or url
    if local is None and offline():
        raise DownloadError(
            f"{name} is not in the cache and LLCUDA_FFI_OFFLINE is set: unset it, or put the file where "
            "LLCUDA_FFI_MIRROR points"
        )
    with partial_file(target.parent, key[:40]) as (file, path):
        digest = Digest(expected)
        try:
            with Progress(name, expected.size, progress) as shows:
                if local is not None:
                    _copy(local, file, digest, shows)
                else:
                    digest = _Transfer(url, file, expected, shows).run(headers, timeout)
                digest.check(name)
            file.flush()
            os.fsync(file.fileno())
            path.replace(target)
        except ChecksumError:
            path.unlink(missing_ok=True)
            raise
        except DownloadError:
            if not digest.size and not file.seek(0, os.SEEK_END):
                path.unlink(missing_ok=True)
            raise
        except OSError as error:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                file.close()  # it cannot write its buffer either
            raise disk_error(error, target) from error
    return digest.sha256


def _local(url: str) -> Path | None:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(url) if not parts.netloc else None


def _copy(source: Path, file: BinaryIO, digest: Digest, shows: Progress) -> None:
    file.seek(0)
    file.truncate()
    try:
        stream = source.open("rb")
    except OSError as error:
        raise NotThere(f"{source} cannot be read ({error.strerror or error})") from error
    with stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            _bounded(digest, str(source))
            file.write(block)
            shows.at(digest.size)


def _bounded(digest: Digest, what: str) -> None:
    if digest.size > digest.expected.limit:
        raise ChecksumError(
            f"{what} is larger than the {digest.expected.limit:,} bytes expected: broken off, nothing of it was used"
        )


class _Restart(Exception):
    """What is there does not fit what the server has: start at its first byte."""


class _Transfer:
    """One file over as many connections as it takes."""

    def __init__(self, url: str, file: BinaryIO, expected: Expected, shows: Progress) -> None:
        self.url = url
        self.file = file
        self.expected = expected
        self.shows = shows
        self.digest = Digest(expected)
        self.resumed = False

    def _start_clean(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest = Digest(self.expected)
        self.resumed = False
        self.shows.at(0)

    def _take_up(self) -> None:
        """Hash what an earlier run left."""
        self.file.seek(0)
        while block := self.file.read(BLOCK):
            self.digest.update(block)
        self.resumed = self.digest.size > 0
        if self.digest.size > self.expected.limit:
            self._start_clean()
        self.shows.at(self.digest.size)

    def run(self, headers: Mapping[str, str] | None, timeout: float) -> Digest:
        import httpx2

        self._take_up()
        attempts = barren = 0
        with client(headers, timeout) as session:
            for _ in range(ATTEMPTS):
                attempts += 1
                before = self.digest.size
                try:
                    if self._pull(session):
                        try:
                            self.digest.check(shown(self.url))
                        except ChecksumError:
                            # The part that an earlier run left may be of another file: once more, from the
                            # start.
                            if not self.resumed:
                                raise
                            self._start_clean()
                            continue
                        return self.digest
                    trouble = f"the connection closed after {self.digest.size:,} bytes"
                except _Restart:
                    self._start_clean()
                    trouble = "the server does not go on where the transfer ended"
                except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                    raise DownloadError(f"{shown(self.url)} is no address to fetch from ({error})") from error
                except (httpx2.TransportError, httpx2.TooManyRedirects) as error:
                    trouble = str(error) or type(error).__name__
                barren = 0 if self.digest.size > before else barren + 1
                if barren >= ATTEMPTS_WITHOUT_PROGRESS:
                    break
                time.sleep(min(BACKOFF_SECONDS * 2**barren, BACKOFF_LIMIT) if barren else BACKOFF_SECONDS)
        raise DownloadError(
            f"fetching {shown(self.url)} failed after {attempts} attempts ({trouble}): check the "
            "network and the proxy settings, or set LLCUDA_FFI_MIRROR; the next run goes on from what has arrived"
        )

    def _pull(self, session: httpx2.Client) -> bool:
        """Stream one response to the file; whether the whole file is there now."""
        have = self.digest.size
        if self.expected.size is not None and have == self.expected.size:
            return True
        headers = {"Range": f"bytes={have}-"} if have else {}
        with session.stream("GET", self.url, headers=headers) as response:
            status = response.status_code
            if status == 416 and have:
                raise _Restart
            if status in RETRIED:
                raise _busy(status)
            if status in (404, 410):
                raise NotThere(f"{shown(self.url)} is not there (HTTP {status})")
            if status in (401, 403):
                raise DownloadError(
                    f"{shown(self.url)} refuses access (HTTP {status}): check the credentials in .npmrc, "
                    "the token of the hub, or the proxy"
                )
            if status not in (200, 206):
                raise DownloadError(f"{shown(self.url)} answered HTTP {status}")
            if status == 200 and have:
                self._start_clean()
            elif status == 206 and not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
                raise _Restart
            length = response.headers.get("content-length", "")
            whole = self.digest.size + int(length) if length.isdigit() else None
            wanted = self.expected.size
            if whole is not None and (whole > self.expected.limit or wanted not in (None, whole)):
                if self.resumed:
                    raise _Restart
                raise ChecksumError(
                    f"{shown(self.url)} has {whole:,} bytes, expected {self.expected.limit:,}: it is not the "
                    "file that was pinned, nothing of it was used"
                )
            self.file.seek(self.digest.size)
            for block in response.iter_raw():
                self.digest.update(block)
                _bounded(self.digest, shown(self.url))
                self.file.write(block)
                self.shows.at(self.digest.size)
        self.file.flush()
        return whole is None or self.digest.size >= whole


def _busy(status: int) -> Exception:
    import httpx2

    return httpx2.TransportError(f"HTTP {status}")
