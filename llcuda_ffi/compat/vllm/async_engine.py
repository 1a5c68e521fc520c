"""vLLM's AsyncLLMEngine over AsyncLlama."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ...async_llama import AsyncLlama
from ...core.adapter import LoraAdapter
from ...engine.media import MediaPrompt
from ...engine.prompts import Prompt, prompt_tokens
from ...engine.results import Chunk, Completion
from ...errors import EngineFailure
from ...keywords import check_keywords, names_methods
from .llm import LoRARequest, adapter, engine_settings
from .media import media_prompt
from .outputs import CompletionOutput, RequestOutput, chunk_output, request_output
from .sampling_params import RequestOutputKind, SamplingParams, check_params
from .tokenizer import Tokenizer

_WITHOUT_EFFECT = (
    "trace_headers",
    "prompt_adapter_request",
    "tokenization_kwargs",
    "data_parallel_rank",
    "prompt_text",
)


class AsyncEngineArgs:
    """What an engine is made of; takes the keywords of vLLM's AsyncEngineArgs."""

    def __init__(self, model: str | os.PathLike[str], **settings: Any) -> None:
        self.model = model
        self.settings = engine_settings(settings, "AsyncEngineArgs")


@names_methods
class AsyncLLMEngine:
    """Requests as asynchronous iterators of their output so far.

    Attributes:
        llama: the AsyncLlama behind it.
    """

    def __init__(self, llama: AsyncLlama) -> None:
        self.llama = llama
        self._tokenizer: Tokenizer | None = None
        self._running: dict[str, asyncio.Future[None]] = {}
        self._adapters: dict[str, LoraAdapter] = {}

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs, **_: Any) -> AsyncLLMEngine:
        """Load, blocking."""
        return cls(AsyncLlama(engine_args.model, **engine_args.settings))

    async def generate(
        self,
        prompt: Prompt | Mapping[str, Any],
        sampling_params: SamplingParams,
        request_id: str,
        lora_request: LoRARequest | None = None,
        *,
        priority: int = 0,
        **others: Any,
    ) -> AsyncIterator[RequestOutput]:
        """The output so far, after each piece; the last one is finished, also of a request that was aborted.

        Raises:
            UnknownSetting: a keyword that vLLM does not take either.
        """
        names = ("prompt", "sampling_params", "request_id", "lora_request", "priority")
        check_keywords(others, "generate", [*names, *_WITHOUT_EFFECT])
        check_params(sampling_params, SamplingParams)
        tokenizer = await self.get_tokenizer()
        llama = self.llama.llama
        if isinstance(prompt, Mapping):
            prompt = await asyncio.to_thread(media_prompt, llama, prompt)
        ids, text = prompt_tokens(llama.vocab, prompt)
        if sampling_params.truncate_prompt_tokens is not None and not isinstance(prompt, MediaPrompt):
            prompt = ids = ids[-sampling_params.truncate_prompt_tokens :]
        params, kind = sampling_params.here(len(ids), tokenizer.controls), sampling_params.output_kind
        if priority:
            params = params.replace(priority=-priority)
        if lora_request is not None:
            params = params.replace(lora=await asyncio.to_thread(adapter, llama.model, lora_request, self._adapters))
        outputs = [CompletionOutput(i, "", [], None, None) for i in range(params.n)]
        done: list[Completion] = []

        def output(found: list[CompletionOutput], finished: bool) -> RequestOutput:
            return RequestOutput(request_id, text, ids.tolist(), None, found, finished)

        aborted = self._running[request_id] = asyncio.get_running_loop().create_future()
        try:
            async with aclosing(_until(aborted, self.llama.stream(prompt, params))) as chunks:
                async for chunk in chunks:
                    new = chunk_output(chunk)
                    outputs[chunk.index] = _joined(outputs[chunk.index], new)
                    if chunk.completion is not None:
                        done.append(chunk.completion)
                    if kind is RequestOutputKind.DELTA and (chunk.text or chunk.token_ids or chunk.finish_reason):
                        new.cumulative_logprob = outputs[chunk.index].cumulative_logprob
                        yield output([new], len(done) == params.n)
                    elif kind is RequestOutputKind.CUMULATIVE and len(done) < params.n:
                        yield output(list(outputs), False)
            if len(done) < params.n:
                if kind is RequestOutputKind.DELTA:
                    over = {one.index for one in done}
                    outputs = [CompletionOutput(i, "", [], None, None) for i in range(params.n) if i not in over]
                yield output([replace(one, finish_reason=one.finish_reason or "abort") for one in outputs], True)
            elif kind is not RequestOutputKind.DELTA:
                yield request_output(request_id, sorted(done, key=lambda one: one.index))
        finally:
            self._running.pop(request_id, None)

    async def abort(self, request_id: str) -> None:
        """End a request."""
        running = self._running.pop(request_id, None)
        if running is not None and not running.done():
            running.set_result(None)

    async def get_tokenizer(self) -> Tokenizer:
        """As LLM.get_tokenizer."""
        if self._tokenizer is None:  # its model may have to be loaded
            self._tokenizer = await asyncio.to_thread(lambda: Tokenizer(self.llama.llama))
        return self._tokenizer

    @property
    def is_running(self) -> bool:
        """Whether the engine works."""
        return self.llama.failure is None

    async def check_health(self) -> None:
        """Raise EngineFailure where the engine is dead."""
        if self.llama.failure is not None:
            raise EngineFailure(str(self.llama.failure))

    def shutdown(self) -> None:
        """Free the model."""
        self.llama.close()


def _joined(so_far: CompletionOutput, new: CompletionOutput) -> CompletionOutput:
    """What was written so far with what is new."""
    scored = new.logprobs is not None
    return CompletionOutput(
        new.index,
        so_far.text + new.text,
        [*so_far.token_ids, *new.token_ids],
        (so_far.cumulative_logprob or 0.0) + (new.cumulative_logprob or 0.0) if scored else None,
        [*(so_far.logprobs or ()), *(new.logprobs or ())] if scored else None,
        new.finish_reason,
        new.stop_reason,
    )


async def _until(end: asyncio.Future[None], chunks: AsyncIterator[Chunk]) -> AsyncGenerator[Chunk, None]:
    """The chunks, until `end` is done."""
    step: asyncio.Future[Chunk] | None = None
    try:
        while True:
            step = asyncio.ensure_future(anext(chunks))
            await asyncio.wait((step, end), return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                return
            try:
                chunk = step.result()
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        if step is not None and not step.done():
            step.cancel()
            await asyncio.wait((step,))
        await chunks.aclose()  # type: ignore[attr-defined]
