"""Renders chat templates in a process of its own: a hostile one can neither hang nor fill this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ...child_process import end_child
from ...errors import InvalidRequest, LlcudaError

MAX_MEMORY = 768 << 20
MAX_TEXT = 32 << 20  # characters
START_TIMEOUT = 60.0

_REASONS = {
    "refused": "the chat template refuses this conversation: {}",
    "syntax": "the chat template is not valid Jinja: {}",
    "failed": "the chat template failed on this conversation: {}",
    "memory": "the chat template was stopped: {}",
    "size": "the chat template was stopped: {}",
}


class Renderer:
    """The rendering process. It starts when first needed, serves any thread, and is replaced when it was
    killed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._finalizer: weakref.finalize[[subprocess.Popen[bytes], int], Renderer] | None = None

    def render(self, template: str, variables: Mapping[str, Any], timeout: float) -> str:
        """The text that `template` makes of `variables`, which must be plain JSON values.

        Raises:
            InvalidRequest: the template is broken, refuses, takes over `timeout` seconds, or uses up the
                memory.
        """
        request = json.dumps({"template": template, "variables": variables}).encode()
        with self._lock:
            answer = self._ask(request, timeout)
        if "error" in answer:
            raise InvalidRequest(_REASONS[answer["error"]].format(answer["message"]))
        text = answer["text"]
        assert isinstance(text, str)
        return text

    def _ask(self, request: bytes, timeout: float) -> dict[str, Any]:
        for attempt in (0, 1):
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            timer = threading.Timer(timeout, process.kill)
            timer.daemon = True
            timer.start()
            try:
                process.stdin.write(len(request).to_bytes(4, "big") + request)
                process.stdin.flush()
                head = _read(process.stdout, 4)
                raw = _read(process.stdout, int.from_bytes(head, "big"))
            except OSError:
                idle_death = timer.is_alive() and attempt == 0 and process.poll() is not None
                self.close()
                if idle_death:
                    continue  # it was killed from outside between two requests, or once while it worked
                raise InvalidRequest(
                    f"the chat template was stopped: it took more than {timeout:g} s or too much memory"
                ) from None
            except BaseException:  # Ctrl-C, a signal's handler: an answer left unread would be the next request's
                self.close()
                raise
            finally:
                timer.cancel()
            answer: dict[str, Any] = json.loads(raw)
            return answer
        raise AssertionError("unreachable")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid():
            return self._process
        if self._process is not None:  # a fork's copy belongs to the parent: leave its process alone
            self._drop()
        if not sys.executable:
            raise LlcudaError("sys.executable is empty: no interpreter is known to render chat templates with")
        start = {"path": [p for p in sys.path if p], "max_memory": MAX_MEMORY, "max_text": MAX_TEXT}
        script = Path(__file__).with_name("render_process.py")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), json.dumps(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for us, not for it
        )
        self._process, self._owner = process, os.getpid()
        self._finalizer = weakref.finalize(self, end_child, process, os.getpid())
        timer = threading.Timer(START_TIMEOUT, process.kill)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout is not None
            _read(process.stdout, 5)
        except OSError:
            self.close()
            raise LlcudaError(
                f"the process that renders chat templates did not start: {sys.executable} ended, or "
                f"took more than {START_TIMEOUT:g} s"
            ) from None
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        return process

    def _drop(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._process is not None:
            self._process.returncode = 0  # not our child: never waited for
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = self._finalizer = None

    def close(self) -> None:
        """End the process; the next render starts a new one."""
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise BrokenPipeError("the rendering process ended")
    return data


shared = Renderer()
