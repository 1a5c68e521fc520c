"""vLLM's AsyncLLMEngine over AsyncLlama."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from ...async_llama import AsyncLlama
from ...engine.prompts import Prompt, prompt_tokens
from ...engine.results import Completion
from ...errors import EngineFailure
from ...keywords import names_methods
from .engine import engine_settings
from .outputs import CompletionOutput, RequestOutput, completion_output, request_output
from .sampling_params import RequestOutputKind, SamplingParams, check_params
from .tokenizer import Tokenizer


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
        self._running: dict[str, Any] = {}

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs, **_: Any) -> AsyncLLMEngine:
        """Load, blocking."""
        return cls(AsyncLlama(engine_args.model, **engine_args.settings))

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams, request_id: str, **_: Any
    ) -> AsyncIterator[RequestOutput]:
        """The output so far, after each piece; the last one is finished."""
        check_params(sampling_params, SamplingParams)
        vocab = self.llama.llama.vocab
        ids, text = prompt_tokens(vocab, prompt)
        params, kind = sampling_params.here(len(ids)), sampling_params.output_kind
        outputs = [CompletionOutput(i, "", [], None, None) for i in range(params.n)]
        done: list[Completion] = []
        chunks = self._running[request_id] = self.llama.stream(prompt, params)
        try:
            async for chunk in chunks:
                old = outputs[chunk.index]
                so_far = old.text + chunk.text
                outputs[chunk.index] = CompletionOutput(
                    chunk.index, so_far, [*old.token_ids, *chunk.token_ids], None, None
                )
                if chunk.completion is not None:
                    done.append(chunk.completion)
                if kind is RequestOutputKind.DELTA and (chunk.text or chunk.token_ids or chunk.finish_reason):
                    new = CompletionOutput(chunk.index, chunk.text, chunk.token_ids, None, None)
                    if chunk.completion is not None:
                        whole = completion_output(chunk.completion, vocab, False)
                        new.finish_reason, new.stop_reason = whole.finish_reason, whole.stop_reason
                    yield RequestOutput(request_id, text, ids.tolist(), None, [new], len(done) == params.n)
                elif kind is RequestOutputKind.CUMULATIVE and len(done) < params.n:
                    yield RequestOutput(request_id, text, ids.tolist(), None, list(outputs), False)
            if kind is RequestOutputKind.DELTA:
                return
            done.sort(key=lambda one: one.index)
            if len(done) == params.n:
                yield request_output(request_id, done, vocab, not sampling_params.skip_special_tokens)
        finally:
            self._running.pop(request_id, None)

    async def abort(self, request_id: str) -> None:
        """End a request."""
        chunks = self._running.pop(request_id, None)
        if chunks is not None:
            await chunks.aclose()

    async def get_tokenizer(self) -> Tokenizer:
        """As LLM.get_tokenizer."""
        return Tokenizer(self.llama.llama)

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
