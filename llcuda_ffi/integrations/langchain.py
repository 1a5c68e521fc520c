"""LangChain: a chat model and a text model over Llama, an Embeddings over Embedder."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr

from ..chat.results import ChatCompletion
from ..embedder import Embedder
from ..llama import Llama
from .awaited import awaited


class _OverLlama:
    """What both models share: a Llama of their own or a given one, and settings of each request."""

    @staticmethod
    def _open(model: str | Llama, options: dict[str, Any]) -> Llama:
        return model if isinstance(model, Llama) else Llama(model, **options)


class ChatLlcuda(BaseChatModel, _OverLlama):  # type: ignore[misc]
    """LangChain's chat model: streaming, tools (`bind_tools`), structured output, async; requests run together.

    chat = ChatLlcuda("smollm2-135m", settings={"temperature": 0})
    chat.invoke("What is a llama?").content
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    model_name: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    _llm: Llama = PrivateAttr()

    def __init__(self, model: str | Llama, *, settings: dict[str, Any] | None = None, **options: Any) -> None:
        """Take a Llama, or make one of a model and Llama's arguments.

        Args:
            settings: fields of SamplingParams, for every request.
        """
        llm = self._open(model, options)
        super().__init__(model_name=llm.model.path.stem, settings=settings or {})
        self._llm = llm

    @property
    def _llm_type(self) -> str:
        return "llcuda-ffi"

    def get_token_ids(self, text: str) -> list[int]:
        """The model's tokens of a text; what `get_num_tokens` counts, and trim_messages with it."""
        ids: list[int] = self._llm.vocab.tokenize(text, add_special=False).tolist()
        return ids

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, **self.settings}

    def _request(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        settings = {**self.settings, **given}
        if stop:
            settings["stop"] = tuple(stop)
        return settings

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **given: Any,
    ) -> ChatResult:
        done: ChatCompletion = self._llm.chat(convert_to_openai_messages(messages), **self._request(stop, given))
        found = [
            ChatGeneration(message=_message(choice, done), generation_info={"finish_reason": choice.finish_reason})
            for choice in done.choices
        ]
        return ChatResult(generations=found, llm_output={"model_name": self.model_name})

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **given: Any,
    ) -> Generator[ChatGenerationChunk]:
        for chunk in self._llm.chat_stream(convert_to_openai_messages(messages), **self._request(stop, given)):
            calls = [
                tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=call.index)
                for call in chunk.tool_calls
            ]
            message = AIMessageChunk(content=chunk.content, tool_call_chunks=calls)
            if chunk.reasoning_content:
                message.additional_kwargs["reasoning_content"] = chunk.reasoning_content
            if chunk.completion is not None:
                message.usage_metadata = _usage(chunk.completion)
                message.response_metadata = {"finish_reason": chunk.finish_reason, "model_name": self.model_name}
            out = ChatGenerationChunk(message=message)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.content, chunk=out)
            yield out

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **given: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(awaited(self._stream(messages, stop, **given))) as pieces:
            async for piece in pieces:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(str(piece.message.content), chunk=piece)
                yield piece

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | Literal["any"] | bool | dict[str, Any] | None = None,
        **settings: Any,
    ) -> Runnable[Any, AIMessage]:
        """The model with tools; `tool_choice` is "auto", "any" (a call is forced), "none" or a tool's name, also as
        OpenAI writes it."""
        if tool_choice:
            settings["tool_choice"] = "required" if tool_choice in ("any", True) else tool_choice
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        bound: Runnable[Any, AIMessage] = self.bind(tools=schemas, **settings)
        return bound


class LlcudaLLM(BaseLLM, _OverLlama):  # type: ignore[misc]
    """LangChain's text model: prompts of one call are computed in one batch."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    model_name: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    _llm: Llama = PrivateAttr()

    def __init__(self, model: str | Llama, *, settings: dict[str, Any] | None = None, **options: Any) -> None:
        """Take a Llama, or make one of a model and Llama's arguments; `settings` are fields of SamplingParams."""
        llm = self._open(model, options)
        super().__init__(model_name=llm.model.path.stem, settings=settings or {})
        self._llm = llm

    @property
    def _llm_type(self) -> str:
        return "llcuda-ffi"

    def get_token_ids(self, text: str) -> list[int]:
        """The model's tokens of a text; what `get_num_tokens` counts, and trim_messages with it."""
        ids: list[int] = self._llm.vocab.tokenize(text, add_special=False).tolist()
        return ids

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **given: Any,
    ) -> LLMResult:
        settings = {**self.settings, **given, **({"stop": tuple(stop)} if stop else {})}
        found = self._llm.generate(list(prompts), **settings)
        info = [{"finish_reason": done.finish_reason} for done in found]
        return LLMResult(
            generations=[[Generation(text=done.text, generation_info=i)] for done, i in zip(found, info, strict=True)]
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **given: Any,
    ) -> Iterator[GenerationChunk]:
        settings = {**self.settings, **given, **({"stop": tuple(stop)} if stop else {})}
        for chunk in self._llm.stream(prompt, **settings):
            piece = GenerationChunk(text=chunk.text)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=piece)
            yield piece


def _usage(done: ChatCompletion) -> UsageMetadata:
    usage = done.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details={"cache_read": usage.cached_tokens},
    )


def _message(choice: Any, done: ChatCompletion) -> AIMessage:
    calls, invalid = [], []
    for call in choice.message.tool_calls:
        try:
            arguments = json.loads(call.arguments)
            if not isinstance(arguments, dict):
                raise ValueError("the arguments are no object")
            calls.append({"name": call.name, "args": arguments, "id": call.id, "type": "tool_call"})
        except ValueError as error:
            invalid.append({"name": call.name, "args": call.arguments, "id": call.id, "error": str(error)})
    reasoning = choice.message.reasoning_content
    return AIMessage(
        content=choice.message.content or "",
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
        usage_metadata=_usage(done),
        response_metadata={"finish_reason": choice.finish_reason, "model_name": done.model},
    )


class LlcudaEmbeddings(Embeddings):  # type: ignore[misc]
    """LangChain's Embeddings; the model's prompts "document" and "query" are used where it has them."""

    def __init__(self, model: str | Embedder, **options: Any) -> None:
        """Take an Embedder, or make one of a model and Embedder's arguments."""
        self.embedder = model if isinstance(model, Embedder) else Embedder(model, **options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents."""
        return self._encode(texts, "document")

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._encode([text], "query")[0]

    def _encode(self, texts: list[str], prompt: str) -> list[list[float]]:
        known = prompt if prompt in self.embedder.prompts else None
        found: list[list[float]] = self.embedder.encode(texts, prompt_name=known, truncate=True).tolist()
        return found
