"""Runs the application: the address first, then the models, then requests until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import InvalidRequest
from .app import BODY_SECONDS, MAX_BODY, MAX_QUEUE, create_app
from .models import Models

# Python's 5 ms are what a step waits, several times, for the interpreter's lock while a thread reads a large body
_SWITCH_SECONDS = 0.0005
_SPARE_FILES = 128  # for models, logs, libraries
_MOST_WAITING = 2048  # connections that the system keeps until they are accepted
_ACCEPTED_AT_ONCE = 32  # streams wait meanwhile
# clients keep connections for 5 to 60 s: whoever closes first must not be the server, just when a request comes
_IDLE_SECONDS = 75
_CUT_SECONDS = 5  # for what is cut off at the end to be told so

log = logging.getLogger("llcuda_ffi.server")


def serve(
    load: Callable[[], Models],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    unix_socket: Path | None = None,
    api_keys: Sequence[str] | Mapping[str, str] = (),
    max_body: int = MAX_BODY,
    max_queue: int = MAX_QUEUE,
    read_timeout: float | None = None,
    cors_origins: Sequence[str] = (),
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    grace: int = 30,
    access_log: bool = False,
    ui: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT; then what runs is finished, for at most `grace` seconds or until another SIGINT.

    What is cut off then ends with an error: an event in a stream, else status 503.

    A socket that a service manager passes (LISTEN_FDS, as systemd does) is taken in place of host and port: it stays
    open while the server is restarted, and clients wait instead of being refused.

    Args:
        load: makes the models, when the address is ours.
        host: an address or name; several with commas between.
        port: 0 takes a free one; the line on stderr says which.
        read_timeout: seconds in which a request's head, and its body, must arrive; None: 15 and 60.
        unix_socket: a path to listen at, in place of host and port.
        tls_cert, tls_key: PEM files of the certificate (with its chain) and its key; both or none.

    Raises:
        OSError: the address cannot be had.
        InvalidRequest: the certificate cannot be used.
        as `load` does.
    """
    import uvicorn

    from .connections import HEAD_SECONDS, BoundedProtocol

    if (tls_cert is None) != (tls_key is None):
        raise InvalidRequest("a certificate needs its key: give both --tls-cert and --tls-key")
    if tls_cert is not None and tls_key is not None:
        _check_certificate(tls_cert, tls_key)
    with contextlib.ExitStack() as opened:
        listeners = _listeners(host, port, unix_socket)
        for listener in listeners:
            opened.callback(listener.close)
        addresses = [_address(each, tls_cert is not None) for each in listeners]
        open_to = [address for address, local in addresses if not local]
        if not api_keys and open_to:
            print(f"warning: anyone who reaches {open_to[0]} can use this server: give --api-key", file=sys.stderr)
        _log_to_stderr(access_log)
        models = load()
        try:
            app = create_app(
                models,
                api_keys=api_keys,
                max_body=max_body,
                max_queue=max_queue,
                body_timeout=read_timeout or BODY_SECONDS,
                cors_origins=cors_origins,
                access_log=access_log,
                ui=ui,
            )
            gate = app.state.gate
            names = " and ".join(model.name for model in list(models)[:4])

            class Server(uvicorn.Server):
                _hurried = False

                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    for listener in listeners:  # asyncio has made it as short as what it accepts at once
                        listener.listen(_MOST_WAITING)
                    urls = " and ".join(f"{address}/v1" for address, _ in addresses)
                    print(f"{names} at {urls}", file=sys.stderr, flush=True)

                async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                    timer = asyncio.get_running_loop().call_later(grace, self._cut)
                    await super().shutdown(sockets)
                    timer.cancel()

                def _cut(self) -> None:
                    tasks = list(self.server_state.tasks)
                    if tasks:
                        log.warning("%d requests have not ended and are cut off", len(tasks))
                    for task in tasks:
                        task.cancel()

                def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                    if gate.closing and sig == signal.SIGINT and not self._hurried:
                        self._hurried = True
                        asyncio.get_running_loop().call_soon_threadsafe(self._cut)
                        return
                    gate.closing = True
                    super().handle_exit(sig, frame)

            BoundedProtocol.most_connections = _most_connections()
            BoundedProtocol.head_seconds = read_timeout or HEAD_SECONDS
            config = uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                log_level="warning",
                access_log=False,
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=grace + _CUT_SECONDS,
                lifespan="on",
                server_header=False,
                backlog=_ACCEPTED_AT_ONCE,
                ssl_certfile=tls_cert,
                ssl_keyfile=tls_key,
            )
            sys.setswitchinterval(_SWITCH_SECONDS)
            gc.collect()
            gc.freeze()  # a collection stops all threads while it looks: at what came since, not at all modules
            with _quiet_end():
                Server(config).run(sockets=listeners)
        finally:
            models.close()
            if unix_socket is not None:
                unix_socket.unlink(missing_ok=True)


def _listeners(host: str, port: int, unix_socket: Path | None) -> list[socket.socket]:
    passed = _passed()
    if passed:
        return passed
    if unix_socket is not None:
        return [_bind_unix(unix_socket)]
    found: list[socket.socket] = []
    try:
        for name in host.split(","):
            found.append(_bind(name.strip(), port))
            port = found[0].getsockname()[1]  # where a free one was asked for, the same for all
    except BaseException:
        for listener in found:
            listener.close()
        raise
    return found


def _passed() -> list[socket.socket]:
    """The sockets that a service manager opened for this process, as sd_listen_fds(3) describes it."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return []
    found = [socket.socket(fileno=3 + i) for i in range(int(count))]
    for listener in found:
        listener.set_inheritable(False)
    return found


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"a port is from 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise OSError(f"--host {host!r:.100} is no address to listen at: {why}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port} cannot be bound: {error.strerror or error}; choose another --port") from None
    return listener


def _bind_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(os.fspath(path)) != 0:
                    path.unlink()  # of a server that is gone
        listener.bind(os.fspath(path))
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        raise OSError(f"{path} cannot be bound: {error.strerror or error}; choose another --unix-socket") from None
    return listener


def _address(listener: socket.socket, tls: bool) -> tuple[str, bool]:
    """The address to be shown, and whether only this machine reaches it."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}", True
    found: Any = listener.getsockname()
    host = str(found[0])
    local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{name}:{found[1]}", local


def _check_certificate(cert: Path, key: Path) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"{cert} and {key} cannot be used as certificate and key: {error}") from None


def _most_connections() -> int:
    """As many as this process may have files open, less a few."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2048 if soft == resource.RLIM_INFINITY else min(2048, soft - _SPARE_FILES)
    return max(16, most)


def _log_to_stderr(access_log: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, on in (("llcuda_ffi.access", access_log), ("llcuda_ffi.server", True)):
        logger = logging.getLogger(name)
        if on and not logger.handlers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False


@contextlib.contextmanager
def _quiet_end() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more, after the last request: it was answered by then."""
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
