"""Runs the application: the port first, then the models, then requests until a signal."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from ..errors import InvalidRequest
from .app import MAX_BODY, MAX_QUEUE, create_app
from .models import Served


def serve(
    load: Callable[[], Served],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_key: str | None = None,
    max_body: int = MAX_BODY,
    max_queue: int = MAX_QUEUE,
    cors_origins: Sequence[str] = (),
    grace: int = 30,
    access_log: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT; then what runs is finished, for at most `grace` seconds.

    Args:
        load: makes the models, when the port is ours.
        port: 0 takes a free one; the line on stderr says which.

    Raises:
        OSError: the port cannot be had.
        as `load` does.
    """
    import uvicorn

    listener = _bind(host, port)
    with contextlib.closing(listener):
        if api_key is None and not _is_loopback(listener.getsockname()[0]):
            print(f"warning: anyone who reaches {host} can use this server: give --api-key", file=sys.stderr)
        served = load()
        try:
            app = create_app(served, api_key=api_key, max_body=max_body, max_queue=max_queue, cors_origins=cors_origins)
            gate = app.state.gate

            class Server(uvicorn.Server):
                def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                    gate.closing = True
                    super().handle_exit(sig, frame)

            config = uvicorn.Config(
                app,
                log_level="info" if access_log else "warning",
                access_log=access_log,
                timeout_graceful_shutdown=grace,
                lifespan="off",
                server_header=False,
            )
            name = f"[{host}]" if ":" in host else host
            names = " and ".join(dict.fromkeys(served.names.values()))
            print(f"{names} at http://{name}:{listener.getsockname()[1]}/v1", file=sys.stderr, flush=True)
            with _quiet_end():
                Server(config).run(sockets=[listener])
        finally:
            served.close()


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"a port is from 0 to 65535, not {port}")
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port} cannot be bound: {error.strerror or error}; choose another --port") from None
    return listener


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _quiet_end() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more, after the last request: it was answered by then."""
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
