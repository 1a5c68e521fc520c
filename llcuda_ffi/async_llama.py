"""AsyncLlama: the same requests, awaited. Threads of the engine step; the event loop is never blocked."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from .chat.methods import AsyncChatMethods
from .core.model import Model
from .engine.metrics import MetricsSnapshot
from .engine.prompts import Prompt
from .engine.request import Request, Tokens
from .engine.results import Chunk, Completion
from .engine.wake import LoopWake
from .errors import ClosedError
from .keywords import check_keywords, names_methods
from .llama import Llama
from .llama_settings import LlamaSettings
from .native.one_process import OneProcess
from .sampling_params import Params, sampling_params, with_given
from .sampling_settings import SamplingSettings
from .structured.grammars import constrained

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

T = TypeVar("T")

_SHORT = 8192  # characters or ids: what takes well below a millisecond is prepared in the event loop
_SLICE = 512  # requests submitted at a time, between which other coroutines run


@names_methods
class AsyncLlama(AsyncChatMethods, OneProcess):
    """Llama for asyncio. Takes what Llama takes; any number of tasks may use it, also of several event loops.

        async with AsyncLlama("smollm2-135m") as llm:
            print((await llm.generate("Once upon a time")).text)
            async for chunk in llm.stream("Once upon a time"):
                print(chunk.text, end="")

    Cancelling the task, or closing the iterator, frees the request's slot within one step.
    """

    def __init__(self, model: str | os.PathLike[str] | Model, **settings: Unpack[LlamaSettings]) -> None:
        """See Llama. Made in a running event loop, it is loaded off that loop: by `load`, `async with` or its first
        call that is awaited. Elsewhere it is loaded at once.
        """
        check_keywords(settings, "AsyncLlama", LlamaSettings.__annotations__)  # now, not at the first await
        self._make: Callable[[], Llama] = lambda: Llama(model, **settings)
        self._llama: Llama | None = None
        self._closed = False
        self._changing = threading.Lock()  # held while it is loaded or closed
        if not _in_event_loop():
            self._loaded()

    @classmethod
    async def load(cls, model: str | os.PathLike[str] | Model, **settings: Unpack[LlamaSettings]) -> Self:
        """An AsyncLlama whose model is loaded; the event loop runs meanwhile.

        Raises:
            as Llama.
        """
        llm = cls(model, **settings)
        await asyncio.to_thread(llm._loaded)
        return llm

    def _loaded(self) -> Llama:
        with self._changing:
            if self._closed:
                raise ClosedError("this AsyncLlama is closed: make a new one")
            if self._llama is None:
                self._llama = self._make()
                self._llama.engine.start()
            return self._llama

    async def _ready(self) -> Llama:
        llama = self._llama
        if llama is None or self._closed:
            llama = await asyncio.to_thread(self._loaded)
        llama.engine.check()
        return llama

    @property
    def llama(self) -> Llama:
        """The Llama behind it, which other threads may use too. Loaded in this thread, where that is still to do."""
        return self._llama or self._loaded()

    @property
    def failure(self) -> BaseException | None:
        """As Llama.failure."""
        return None if self._llama is None else self._llama.failure

    @overload
    async def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        json_schema: type[T],
        **settings: Unpack[SamplingSettings],
    ) -> Completion[T | None]: ...
    @overload  # a text is an iterable of texts too: the first signature that fits is right
    async def generate(  # type: ignore[overload-overlap]
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        n: Literal[1] = ...,
        json_schema: Any = ...,
        return_exceptions: Literal[False] = ...,
        **settings: Unpack[SamplingSettings],
    ) -> Completion: ...
    @overload  # a text is an iterable of texts too: the first signature that fits is right
    async def generate(  # type: ignore[overload-overlap]
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        n: int,
        json_schema: Any = ...,
        **settings: Unpack[SamplingSettings],
    ) -> list[Completion]: ...
    @overload  # a text is an iterable of texts too: the first signature that fits is right
    async def generate(  # type: ignore[overload-overlap]
        self,
        prompt: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        n: Literal[1] = ...,
        json_schema: Any = ...,
        return_exceptions: Literal[False] = ...,
        **settings: Unpack[SamplingSettings],
    ) -> list[Completion]: ...
    @overload
    async def generate(
        self,
        prompt: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        n: int,
        json_schema: Any = ...,
        **settings: Unpack[SamplingSettings],
    ) -> list[list[Completion]]: ...
    @overload
    async def generate(
        self,
        prompt: Prompt | Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        n: int = ...,
        json_schema: Any = ...,
        return_exceptions: bool,
        **settings: Unpack[SamplingSettings],
    ) -> Any: ...
    async def generate(
        self,
        prompt: Prompt | Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        return_exceptions: bool = False,
        **settings: Any,
    ) -> Any:
        """As Llama.generate: a Completion, or a list of them for a list of prompts or n > 1."""
        llama = await self._ready()
        generation = await _off_loop(
            not _is_short(prompt, params, settings),
            lambda: llama.prepare(prompt, params, settings, return_exceptions=return_exceptions),
        )
        requests, wake = generation.requests, LoopWake()
        try:
            for start in range(0, len(requests), _SLICE):
                if start:
                    await asyncio.sleep(0)
                _submit(llama, requests[start : start + _SLICE], wake)
            for request in requests:
                while not request.done:
                    await wake.wait()
        finally:
            llama.engine.cancel(*requests)
        return await _off_loop(len(requests) > _SLICE, generation.results)

    def infill_prompt(self, prefix: str, suffix: str) -> Tokens:
        """As Llama.infill_prompt."""
        return self.llama.infill_prompt(prefix, suffix)

    async def infill(
        self, prefix: str, suffix: str, params: Params | None = None, **settings: Unpack[SamplingSettings]
    ) -> Completion:
        """As Llama.infill."""
        done: Completion = await self.generate(self.infill_prompt(prefix, suffix), params, **settings)
        return done

    async def stream(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        n: int | None = None,
        json_schema: Any = None,
        begun: Iterable[Chunk] = (),
        **settings: Unpack[SamplingSettings],
    ) -> AsyncIterator[Chunk]:
        """As Llama.stream, for `async for`."""
        llama = await self._ready()
        asked = sampling_params(params, with_given(settings, n=n, json_schema=json_schema))
        requests = await _off_loop(
            not _is_short(prompt, asked, {}) or begun != (),
            lambda: llama.requests(prompt, asked, stream=True, begun=begun),
        )
        wake = LoopWake()
        try:
            _submit(llama, requests, wake)
            while True:
                for request in requests:
                    while (chunk := request.chunks.pop()) is not None:
                        yield chunk
                if all(request.done and not request.chunks for request in requests):
                    for request in requests:
                        request.result()
                    return
                await wake.wait()
        finally:
            llama.engine.cancel(*requests)

    def metrics(self) -> MetricsSnapshot:
        """As Llama.metrics."""
        return self.llama.metrics()

    def close(self) -> None:
        """End all requests with Cancelled and free everything; blocks until then. Does nothing the second time."""
        with self._changing:
            self._closed = True
            if self._llama is not None:
                self._llama.engine.close(wait=True)
                self._llama.close()

    async def aclose(self) -> None:
        """As `close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        await self._ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_short(prompt: Any, params: Params | Sequence[Params] | None, settings: Mapping[str, Any]) -> bool:
    """Whether it is one prompt that is prepared in no time; a grammar may take long to compile."""
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, np.ndarray):
        ids = prompt.ndim == 1 and prompt.dtype.kind in "iu"
    else:
        ids = isinstance(prompt, list) and len(prompt) > 0 and isinstance(prompt[0], int)
    if not (ids or isinstance(prompt, (str, bytes))) or isinstance(params, Sequence) or len(prompt) > _SHORT:
        return False
    return not constrained(sampling_params(params, settings))


async def _off_loop(long: bool, function: Callable[[], T]) -> T:
    """The result of a call, from a thread where it may take long."""
    return await asyncio.to_thread(function) if long else function()


def _submit(llama: Llama, requests: Sequence[Request], wake: LoopWake) -> None:
    for request in requests:
        request.wake = wake  # type: ignore[assignment]
    llama.engine.submit(*requests)
