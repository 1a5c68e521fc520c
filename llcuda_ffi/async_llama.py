"""AsyncLlama: the same requests, awaited. Threads of the engine step; the event loop is never blocked."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .chat.methods import AsyncChatMethods
from .core.model import Model
from .engine.metrics import MetricsSnapshot
from .engine.prompts import Prompt, split_prompts
from .engine.replicas import Lanes
from .engine.request import Request, Tokens, outcome
from .engine.results import Chunk
from .errors import ClosedError, InvalidRequest, LlcudaError
from .llama import Llama
from .sampling_params import SamplingParams, params_of_each, sampling_params
from .structured.grammars import constrained

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_T = TypeVar("_T")


class _Wake:
    """What a request sets when it has something, from the engine thread: wakes a coroutine of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            pass  # the loop was closed: nobody waits any more

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


async def _prepared(params: Sequence[SamplingParams], make: Callable[[], _T]) -> _T:
    """What `make` makes; a grammar may take long to compile, which must not be in the event loop."""
    return await asyncio.to_thread(make) if any(map(constrained, params)) else make()


class AsyncLlama(AsyncChatMethods):
    """Llama for asyncio. Takes what Llama takes; any number of tasks may use it, also of several event loops.

        async with AsyncLlama("smollm2-135m") as llm:
            print((await llm.generate("Once upon a time")).text)
            async for chunk in llm.stream("Once upon a time"):
                print(chunk.text, end="")

    Cancelling the task, or closing the iterator, frees the request's slot within one step.
    """

    def __init__(self, model: str | os.PathLike[str] | Model, **settings: Any) -> None:
        """Load, blocking; see Llama. (In a running loop: `await asyncio.to_thread(AsyncLlama, …)`.)"""
        self._llama = Llama(model, **settings)
        driver = self._llama._driver
        self._lanes = driver if isinstance(driver, Lanes) else Lanes([driver])
        # the threads must stop before the contexts that they use are freed
        self._finalizer = weakref.finalize(self, self._lanes.stop)
        self._finalizer.atexit = False  # at exit such threads may be held (native/handle.py): do not wait for them

    @property
    def llama(self) -> Llama:
        """The Llama behind it, for its attributes; call no generate on it."""
        return self._llama

    def _submit(self, request: Request, wake: _Wake) -> None:
        request.wake = wake  # type: ignore[assignment]
        self._lanes.submit(request)

    def _cancel(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not request.done:
                self._lanes.cancel(request)

    def _check(self) -> None:
        if not self._finalizer.alive:
            raise ClosedError("this AsyncLlama is closed: make a new one")
        self._lanes.check()

    async def generate(
        self,
        prompt: Prompt | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        return_exceptions: bool = False,
        **settings: Any,
    ) -> Any:
        """As Llama.generate: a Completion, or a list of them for a list of prompts or n > 1."""
        self._check()
        prompts, many = split_prompts(prompt)
        each = params_of_each(params, settings, len(prompts), many)
        llama = self._llama

        def make() -> list[list[Request] | LlcudaError]:
            groups: list[list[Request] | LlcudaError] = []
            for i, (one, p) in enumerate(zip(prompts, each, strict=True)):
                try:
                    groups.append(llama._requests(one, p))
                except InvalidRequest as error:
                    if not return_exceptions:
                        raise (type(error)(f"prompt {i}: {error}") if many else error) from None
                    groups.append(error)
            return groups

        groups = await _prepared(each, make)
        requests = [r for group in groups if isinstance(group, list) for r in group]
        wake = _Wake()
        for request in requests:
            self._submit(request, wake)
        try:
            while not all(r.done for r in requests):
                await wake.wait()
        finally:
            self._cancel(requests)
        results = [outcome(group, return_exceptions) for group in groups]
        return results if many else results[0]

    def infill_prompt(self, prefix: str, suffix: str) -> Tokens:
        """As Llama.infill_prompt."""
        return self._llama.infill_prompt(prefix, suffix)

    async def infill(self, prefix: str, suffix: str, params: SamplingParams | None = None, **settings: Any) -> Any:
        """As Llama.infill."""
        return await self.generate(self.infill_prompt(prefix, suffix), params, **settings)

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any
    ) -> AsyncIterator[Chunk]:
        """As Llama.stream, for `async for`."""
        self._check()
        params = sampling_params(params, settings)
        chunks: deque[Chunk] = deque()
        llama, asked = self._llama, params
        requests = await _prepared([params], lambda: llama._requests(prompt, asked, chunks.append))
        wake = _Wake()
        for request in requests:
            self._submit(request, wake)
        try:
            while True:
                while chunks:
                    yield chunks.popleft()
                if not chunks and all(request.done for request in requests):
                    for request in requests:
                        request.result()
                    return
                await wake.wait()
        finally:
            self._cancel(requests)

    def metrics(self) -> MetricsSnapshot:
        """As Llama.metrics."""
        return self._llama.metrics()

    def close(self) -> None:
        """Stop the engine thread and free everything. Does nothing the second time."""
        if self._finalizer.alive:
            self._finalizer()
            self._llama.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
