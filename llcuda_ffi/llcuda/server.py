"""ServerManager: llcuda's class; it runs `llcuda-ffi serve` in a child process instead of llama-server."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from ..child_process import python_command
from ..errors import InvalidRequest, LoadError
from ..hub.references import resolve
from ..params import INT32_MAX, integer, number, shown

if TYPE_CHECKING:
    from typing_extensions import Self


class ServerManager:
    """Starts and stops a server with an OpenAI-compatible API (docs/server.md). Needs the extra `server`.

        with ServerManager() as manager:
            manager.start_server("smollm2-135m", ctx_size=512)
            print(manager.get_server_info()["url"])

    The server ends with this object, and with this process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._arguments: dict[str, Any] | None = None
        self._began = 0.0
        self._end: weakref.finalize[Any, Any] | None = None

    def start_server(
        self,
        model_path: str | os.PathLike[str],
        port: int = 8090,
        host: str = "127.0.0.1",
        gpu_layers: int | None = 99,
        ctx_size: int = 2048,
        n_parallel: int = 1,
        batch_size: int = 512,
        ubatch_size: int = 128,
        timeout: float = 60,
    ) -> bool:
        """Start a server and wait until it answers. One that this object started before is stopped first.

        Args:
            model_path: a path, a registry name, "repo:file.gguf" or "hf://repo/file@revision".
            gpu_layers: layers on the GPU; more than there are means all, None as many as fit.
            ctx_size: longest request in tokens.
            timeout: seconds until it must answer. Fetching the model is not in it.

        Returns:
            True; what goes wrong raises.

        Raises:
            ModelError: no such model.
            LoadError: the server ended or did not answer in time; the message has its last words.
        """
        number("timeout", timeout, 1e-3)
        integer("port", port, 1, 65535)
        for name, value in (("ctx_size", ctx_size), ("batch_size", batch_size), ("ubatch_size", ubatch_size)):
            integer(name, value, 1, INT32_MAX)
        integer("n_parallel", n_parallel, 1, 256)
        if gpu_layers is not None:
            integer("gpu_layers", gpu_layers, -1, INT32_MAX)
        if not isinstance(host, str) or not host:
            raise InvalidRequest(f"host must be a name or an address, not {shown(host)}")
        arguments = {
            "port": port,
            "host": host,
            "gpu_layers": gpu_layers,
            "ctx_size": ctx_size,
            "n_parallel": n_parallel,
            "batch_size": batch_size,
            "ubatch_size": ubatch_size,
            "timeout": timeout,
        }
        path = resolve(model_path)
        self.stop_server()
        if _answers(host, port):
            raise LoadError(f"something else listens at {host}:{port} already: choose another port")
        command = python_command("llcuda_ffi", "serve", str(path), "--host", host, "--port", str(port))
        command += ["--ctx", str(ctx_size), "--parallel", str(n_parallel)]
        command += ["--batch", str(max(batch_size, ubatch_size)), "--ubatch", str(ubatch_size)]
        if gpu_layers is not None:
            command += ["--n-gpu-layers", str(gpu_layers)]
        log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._process, self._log, self._began = process, log, time.monotonic()
        self._end = weakref.finalize(self, _stop, process, log)
        self._arguments = {"model_path": path, **arguments}
        try:
            self._wait(host, port, timeout)
        except BaseException:
            self.stop_server()
            raise
        return True

    def _wait(self, host: str, port: int, timeout: float) -> None:
        assert self._process is not None
        while not _healthy(host, port):
            status = self._process.poll()
            if status is not None:
                raise LoadError(f"the server ended with status {status}: {self._words()}")
            if time.monotonic() - self._began > timeout:
                raise LoadError(f"the server did not answer within {timeout:g} s: {self._words()}")
            time.sleep(0.05)

    def _words(self) -> str:
        """The last of what the server wrote."""
        assert self._log is not None
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace").strip()[-2000:] or "it wrote nothing"

    def stop_server(self) -> bool:
        """Stop the server: what runs is finished. Returns whether there was one."""
        running = self._process is not None and self._process.poll() is None
        if self._end is not None:
            self._end()
        self._process = self._log = self._end = None
        return running

    def restart_server(self) -> bool:
        """Stop the server and start it as it was started.

        Raises:
            InvalidRequest: none was started.
            as `start_server`.
        """
        if self._arguments is None:
            raise InvalidRequest("no server was started: call start_server() first")
        return self.start_server(**self._arguments)

    def get_server_info(self) -> dict[str, Any]:
        """What runs: running, healthy, pid, url, uptime_s, and the arguments of start_server."""
        process, arguments = self._process, dict(self._arguments or {})
        running = process is not None and process.poll() is None
        info: dict[str, Any] = {"running": running, "healthy": False, "pid": None, "url": None, "uptime_s": 0.0}
        if process is not None and running:
            host, port = arguments["host"], arguments["port"]
            name = f"[{host}]" if ":" in host else host
            info |= {"healthy": _healthy(host, port), "pid": process.pid, "url": f"http://{name}:{port}"}
            info["uptime_s"] = time.monotonic() - self._began
        if arguments:
            arguments["model_path"] = str(Path(arguments["model_path"]))
        return {**info, **arguments}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_server()


def _reachable(host: str) -> str:
    """The address of this machine under which a server bound to `host` is reached."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((_reachable(host), port), 2).close()
    except OSError:
        return False
    return True


def _healthy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(_reachable(host), port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """End a server; one that does not end by itself in time is killed."""
    try:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(35)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        log.close()
