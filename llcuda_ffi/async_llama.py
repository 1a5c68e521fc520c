"""AsyncLlama: the same requests, awaited. Threads of the engine step; the event loop is never blocked."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .chat.methods import AsyncChatMethods
from .core.model import Model
from .engine.metrics import MetricsSnapshot
from .engine.replicas import Lanes
from .engine.request import Request
from .engine.results import Chunk, Completion
from .errors import ClosedError, InvalidRequest
from .llama import Llama, Prompt, _is_many
from .params import override
from .sampling_params import SamplingParams
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


async def _prepared(params: SamplingParams, make: Callable[[], _T]) -> _T:
    """What `make` makes; a grammar may take long to compile, which must not be in the event loop."""
    return await asyncio.to_thread(make) if constrained(params) else make()


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
        self, prompt: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **settings: Any
    ) -> Any:
        """As Llama.generate: a Completion, or a list of them for a list of prompts or n > 1."""
        self._check()
        params = override(params or SamplingParams(), settings)
        many = _is_many(prompt)
        prompts: list[Any] = list(prompt) if many else [prompt]
        llama = self._llama
        groups = await _prepared(params, lambda: [llama._requests(llama.tokenize_prompt(p), params) for p in prompts])
        requests = [r for group in groups for r in group]
        wake = _Wake()
        for request in requests:
            self._submit(request, wake)
        try:
            while not all(r.done for r in requests):
                await wake.wait()
        finally:
            self._cancel(requests)
        results: list[Any] = []
        for group in groups:
            completions: list[Completion] = [r.result() for r in group]
            results.append(completions if params.n > 1 else completions[0])
        return results if many else results[0]

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any
    ) -> AsyncIterator[Chunk]:
        """As Llama.stream, for `async for`."""
        self._check()
        params = override(params or SamplingParams(), settings)
        if params.n != 1:
            raise InvalidRequest("a stream has one completion: use n=1, or generate()")
        chunks: deque[Chunk] = deque()
        llama = self._llama
        request = await _prepared(
            params, lambda: llama._requests(llama.tokenize_prompt(prompt), params, chunks.append)[0]
        )
        wake = _Wake()
        self._submit(request, wake)
        try:
            while True:
                while chunks:
                    yield chunks.popleft()
                if request.done and not chunks:
                    request.result()
                    return
                await wake.wait()
        finally:
            self._cancel([request])

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
