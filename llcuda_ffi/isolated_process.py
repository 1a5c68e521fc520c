"""The process of `Llama(…, isolate=True)`: a Llama that does what it is sent (isolated/engine.py is the other side)."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .core.projector import Image, Sound
from .engine.request import Request
from .engine.results import Completion
from .errors import InvalidRequest, LlcudaError
from .isolated.channel import Channel
from .isolated.media import chunks_out, medium_back, prompt_back
from .isolated.wire import back, plain, plain_error
from .llama import Llama


class _Outlet:
    """What a request sets when it has something: sends its chunks, and its end."""

    def __init__(self, service: Service, number: int, request: Request) -> None:
        self._service, self._number, self._request = service, number, request
        self._first = True

    def set(self) -> None:
        request, service, number = self._request, self._service, self._number
        while (chunk := request.chunks.pop()) is not None:
            if chunk.completion is not None:
                chunk.completion = _lean(request, chunk.completion)
                service.send(number, "chunk", chunk, now=self._first)
            elif chunk.logprobs is not None:
                service.send(number, "chunk", chunk, now=self._first)
            else:  # what comes most: as it is, which costs far less than a named kind
                service.send(number, "text", [chunk.text, chunk.token_ids], now=self._first)
            self._first = False
        if request.done and service.running.pop(number, None) is not None:
            if request.error is not None:
                service.send(number, "error", plain_error(request.error), now=False)
            else:
                # a stream's last chunk has the completion
                service.send(number, "done", None if request.streams else _lean(request, request.result()), now=False)

    def clear(self) -> None:
        """Nobody sleeps here."""


class Service:
    """Answers messages.

    Attributes:
        running: requests by number.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.running: dict[int, Request] = {}
        self._llama: Llama | None = None
        self._failed: BaseException | None = None
        self._encoding = ThreadPoolExecutor(1, "llcuda_ffi-encoder")  # a projector encodes one medium at a time

    def send(self, number: int, kind: str, value: Any, blob: bytes = b"", *, now: bool = True) -> None:
        """Send an answer; not `now` what comes often, which is gathered."""
        self._channel.send([number, kind, value], blob, now=now)

    def serve(self) -> None:
        """Answer until the other side is gone."""
        for message, blob in self._channel.messages():
            if blob:
                message["blob"] = blob
            operation: Callable[[dict[str, Any]], None] = getattr(self, f"on_{message['op']}")
            numbers = message.get("ids", [message.get("id")])
            try:
                operation(message)
            except Exception as error:  # whatever it is, the caller gets it
                for number in numbers:
                    self.running.pop(number, None)
                    self.send(number, "error", plain_error(error))

    @property
    def llama(self) -> Llama:
        """The model.

        Raises:
            what its load raised.
        """
        if self._llama is None:
            raise self._failed or LlcudaError("nothing was loaded")
        return self._llama

    def on_load(self, message: dict[str, Any]) -> None:
        """Load the model; a failure is told to whoever asks next."""
        try:
            settings = {name: back(value) for name, value in message["settings"].items()}
            if isinstance(settings["kv_type"], list):  # JSON has no tuples
                settings["kv_type"] = tuple(settings["kv_type"])
            self._llama = Llama(settings.pop("model"), **settings)
            self._llama.engine.start()
        except Exception as error:  # told to whoever asks
            self._failed = error

    def on_ready(self, message: dict[str, Any]) -> None:
        """What the parent must know of the Llama."""
        llama = self.llama
        memory = llama.context.memory
        known: dict[str, Any] = {
            "n_ctx": llama.n_ctx,
            "can_shift": memory is not None and memory.can_shift,
            "projector": None,
        }
        if llama.media is not None:
            projector = llama.media.projector
            known["projector"] = [str(projector.path), projector.sees, projector.hears, projector.sample_rate]
        self.send(message["id"], "done", plain(known))

    def on_generate(self, message: dict[str, Any]) -> None:
        """Submit the n requests of a prompt."""
        llama, ids = self.llama, message["ids"]
        params, prompt = back(message["params"]), message["prompt"]
        if "media" in message:
            prompt = prompt_back(prompt, message["media"], message.get("blob", b""))
        requests = llama.requests(prompt, params, stream=message["stream"], begun=map(back, message["begun"]))
        for number, request in zip(ids, requests, strict=True):
            self.running[number] = request
            request.wake = _Outlet(self, number, request)  # type: ignore[assignment]
        llama.engine.submit(*requests)

    def on_encode(self, message: dict[str, Any]) -> None:
        """Encode an image or a sound, beside what is generated."""
        medium = medium_back(message["medium"], message.get("blob", b""))
        self._encoding.submit(self._encode, message["id"], medium)

    def _encode(self, number: int, medium: Image | Sound) -> None:
        try:
            media = self.llama.media
            if media is None:
                raise InvalidRequest("this Llama has no projector: Llama(model, mmproj=…)")
            described, blob = chunks_out(media.projector.encode([medium], add_special=False))
            self.send(number, "media", described, blob)
        except Exception as error:  # whatever it is, the caller gets it
            self.send(number, "error", plain_error(error))

    def on_cancel(self, message: dict[str, Any]) -> None:
        """End requests."""
        found = [self.running.get(number) for number in message["ids"]]
        self.llama.engine.cancel(*[request for request in found if request is not None])

    def on_metrics(self, message: dict[str, Any]) -> None:
        """The counters."""
        self.send(message["id"], "done", self.llama.metrics())

    def on_clear_cache(self, message: dict[str, Any]) -> None:
        """Forget kept prefixes."""
        self.llama.clear_cache()
        self.send(message["id"], "done", None)

    def on_save_state(self, message: dict[str, Any]) -> None:
        """Write them."""
        self.send(message["id"], "done", self.llama.save_state(message["path"]))

    def on_load_state(self, message: dict[str, Any]) -> None:
        """Read them."""
        self.send(message["id"], "done", self.llama.load_state(message["path"]))


def _lean(request: Request, completion: Completion) -> Completion:
    """Without what the other side knows; `parsed` says whether a structured output is complete."""
    complete = request.output.complete(completion.finish_reason)
    return dataclasses.replace(completion, prompt=None, prompt_token_ids=[], parsed=complete or None)


def main() -> None:
    """Serve the socket whose descriptor is the argument; then leave at once, the parent is gone."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), plain)
    try:
        Service(channel).serve()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
