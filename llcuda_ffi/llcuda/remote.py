"""A server's completions as this package's results: what InferenceEngine(server_url=…) asks."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from ..engine.results import Chunk, Completion, Timings, Usage
from ..errors import BackendFailure, InvalidRequest
from ..params import shown
from ..sampling_params import SamplingParams

_DEFAULTS = SamplingParams()
# sent also where they have our default: another server's may differ
_ALWAYS = ("max_tokens", "temperature", "top_p", "top_k", "seed")


class RemoteLlama:
    """`generate` and `stream` of texts, over the /v1/completions of a server such as `llcuda-ffi serve`."""

    def __init__(self, url: str) -> None:
        wrong = InvalidRequest(f"server_url must be like http://127.0.0.1:8090, not {shown(url)}")
        try:
            parts = urlsplit(url if isinstance(url, str) else "")
            port = parts.port
        except ValueError:  # a port that is none, half an IPv6 address
            raise wrong from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise wrong
        self.url = url
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/").removesuffix("/v1")

    @contextlib.contextmanager
    def _ask(self, method: str, path: str, data: str | None = None) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        with contextlib.closing(kind(self._host, self._port, timeout=600)) as connection:
            try:
                connection.request(method, self._path + path, data, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = "" if answer.status == 200 else answer.read().decode("utf-8", "replace")
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
                raise BackendFailure(f"the server at {self.url} does not answer: {reason}") from None
            with answer:
                if answer.status != 200:
                    raise self._refusal(answer.status, text)
                yield answer

    def _refusal(self, status: int, text: str) -> BackendFailure | InvalidRequest:
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            text = text[:200]
        kind = InvalidRequest if status < 500 else BackendFailure
        return kind(f"the server at {self.url} answered {status}: {text}")

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            with self._ask("GET", "/health"):
                return True
        except (BackendFailure, InvalidRequest):
            return False

    def generate(self, prompt: str | list[str], params: SamplingParams) -> Any:
        """A Completion; for a list of prompts a list, asked for at once.

        Raises:
            InvalidRequest: the server refused.
            BackendFailure: it failed, or does not answer.
        """
        if isinstance(prompt, list):
            with ThreadPoolExecutor(max(1, min(8, len(prompt)))) as pool:
                return list(pool.map(lambda one: self.generate(one, params), prompt))
        *_, last = self.stream(prompt, params)
        return last.completion

    def stream(self, prompt: str, params: SamplingParams) -> Iterator[Chunk]:
        """Chunks; the last one has the Completion.

        Raises:
            as `generate`.
        """
        values = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
        body = {n: v for n, v in values.items() if n in _ALWAYS or v != getattr(_DEFAULTS, n)}
        body |= {"prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
        began = perf_counter()
        text, reason, usage, timings = "", None, Usage(0, 0, 0), None
        first = 0.0
        try:
            data = json.dumps({n: v for n, v in body.items() if v is not None})
        except (TypeError, ValueError) as error:  # functions, adapters, classes
            raise InvalidRequest(f"a setting cannot be sent to the server at {self.url}: {error}") from None
        with self._ask("POST", "/v1/completions", data) as answer:
            for event in self._events(answer):
                if event.get("usage"):
                    counts = event["usage"]
                    cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                    usage = Usage(counts["prompt_tokens"], cached, counts["completion_tokens"])
                timings = event.get("timings") or timings
                for choice in event["choices"]:
                    reason = choice["finish_reason"] or reason
                    first = first or perf_counter()
                    text += choice["text"]
                    yield Chunk(choice["text"], [])
        if reason is None:
            raise BackendFailure(f"the server at {self.url} ended the stream before the answer was over")
        spent = _timings(timings, began, first, usage.completion_tokens)
        finish: Any = reason if reason in ("length", "cancelled") else "stop"
        yield Chunk("", [], finish_reason=finish, completion=Completion(text, [], finish, usage, spent))

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        try:
            for line in answer:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise BackendFailure(f"the server at {self.url} failed: {event['error'].get('message')}")
                yield event
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BackendFailure(f"the server at {self.url} broke off: {error or type(error).__name__}") from None


def _timings(given: Any, began: float, first: float, n: int) -> Timings:
    """The server's own timings where it is one of ours, else the clock's here."""
    try:
        return Timings(**given)
    except TypeError:
        prompt, decode = first - began, perf_counter() - first
        return Timings(0.0, prompt, prompt, decode, (n - 1) / decode if n > 1 and decode > 0 else 0.0)
