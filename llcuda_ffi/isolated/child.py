"""A child process with an engine: what it was asked, and what it answers."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

from ..child_process import python_command
from ..engine.request import Request
from ..engine.results import Chunk, Completion
from ..errors import LlcudaError
from .channel import Channel
from .media import chunks_back
from .wire import back, error_back, plain

MODULE = "llcuda_ffi.isolated_process"


class Question:
    """Something asked of the child that is no request: metrics, states."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: LlcudaError | None = None

    def answer(self, value: Any = None, error: LlcudaError | None = None) -> None:
        self.value, self.error = value, error
        self.done.set()


class Child:
    """A process with an engine, and what it was asked."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        self.words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self.process = subprocess.Popen(
                python_command(MODULE, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=self.words,
                stderr=self.words,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for us
            )
        except BaseException:
            ours.close()
            self.words.close()
            raise
        finally:
            theirs.close()
        self.channel = Channel(ours, plain)
        self.asked: dict[int, Request | Question] = {}
        self.sent: dict[int, tuple[int, int]] = {}  # tokens and characters of a stream
        self.next_id = 0
        self.alive = True
        self.loaded = False
        self.channel.send({"op": "load", "settings": settings})

    def numbers(self, asked: Sequence[Request | Question]) -> list[int]:
        """Take note of what is asked; its numbers."""
        ids = list(range(self.next_id, self.next_id + len(asked)))
        self.next_id += len(asked)
        self.asked.update(zip(ids, asked, strict=True))
        return ids

    def last_words(self) -> str:
        """How it ended, and what it wrote last."""
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        try:
            self.words.seek(max(0, self.words.seek(0, os.SEEK_END) - 8000))
            written = self.words.read().decode("utf-8", "replace")
        except ValueError:  # closed meanwhile by `end`: nobody asked for them
            written = ""
        lines = [line.strip() for line in written.splitlines()]
        said = " | ".join([line for line in lines if line][-4:])[-2000:]
        hint = "; SIGKILL is how the system ends what takes too much memory" if status == -signal.SIGKILL else ""
        return f"{how}{hint}; its last words: {said or 'none'}"

    def end(self) -> None:
        """Kill it, if it still runs, and leave nothing of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.channel.close()
        self.words.close()


def take(child: Child, message: Any, blob: bytes = b"") -> None:
    """Hand out one message, and the bytes that belong to it.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is none; what it belongs to is still in `child.asked`.
    """
    number, kind, value = message
    child.loaded = True
    asked = child.asked.get(number)
    if asked is None:
        return
    if kind == "text":
        text, token_ids = value
        if isinstance(asked, Question) or type(text) is not str or type(token_ids) is not list:
            raise ValueError("no text")
        _put(child, number, asked, Chunk(text, token_ids, index=asked.index))
        return
    found: Any = error_back(value) if kind == "error" else chunks_back(value, blob) if kind == "media" else back(value)
    if isinstance(asked, Question):
        asked.answer(**{"error" if kind == "error" else "value": found})
    elif kind == "error":
        asked.fail(found)
    elif kind == "chunk":
        if not isinstance(found, Chunk):
            raise ValueError("no chunk")
        found.index = asked.index
        if found.completion is not None:
            found.completion = asked.completion = _whole(asked, found.completion)
            asked.done = True
        _put(child, number, asked, found)
        return
    elif not asked.done:
        if not isinstance(found, Completion):
            raise ValueError("no completion")
        asked.completion = _whole(asked, found)
        asked.done = True
        asked.notify()
    child.asked.pop(number, None)
    child.sent.pop(number, None)


def _put(child: Child, number: int, request: Request, chunk: Chunk) -> None:
    """Give a chunk to who reads the stream."""
    if not request.streams:
        raise ValueError("a chunk that nobody asked for")
    tokens, chars = child.sent.get(number, request.chunks.given)
    request.chunks.put(tokens, chars, chunk)
    child.sent[number] = tokens + len(chunk.token_ids), chars + len(chunk.text)
    request.notify()


def _whole(request: Request, completion: Completion) -> Completion:
    """With the prompt, and the value of a structured output: it may be an object of a class of the caller's."""
    return dataclasses.replace(
        completion,
        prompt=request.prompt_text,
        prompt_token_ids=request.prompt.tolist(),
        parsed=request.output.parsed("eog", completion.text) if completion.parsed else None,
    )
