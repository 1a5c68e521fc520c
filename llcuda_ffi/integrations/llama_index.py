"""LlamaIndex: a language model over Llama (chat, completion, tools), an embedding model over Embedder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection

from ..embedder import Embedder
from ..errors import InvalidRequest
from ..llama import Llama
from .awaited import awaited

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


class LlcudaLLM(FunctionCallingLLM):  # type: ignore[misc]
    """LlamaIndex's language model: chat and completion, streamed, async, with tools.

    Settings.llm = LlcudaLLM("smollm2-135m", settings={"temperature": 0})
    """

    settings: dict[str, Any] = Field(default_factory=dict)
    _llm: Llama = PrivateAttr()

    def __init__(self, model: str | Llama, *, settings: dict[str, Any] | None = None, **options: Any) -> None:
        """Take a Llama, or make one of a model and Llama's arguments; `settings` are fields of SamplingParams."""
        super().__init__(settings=settings or {})
        self._llm = model if isinstance(model, Llama) else Llama(model, **options)

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's own records."""
        return "LlcudaLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model."""
        return LLMMetadata(
            context_window=self._llm.n_ctx,
            num_output=self.settings.get("max_tokens") or 256,
            is_chat_model=self._llm.model.chat_template() is not None,
            is_function_calling_model=True,
            model_name=self._llm.model.path.stem,
        )

    # --- conversations ---

    def chat(self, messages: Sequence[ChatMessage], **given: Any) -> ChatResponse:
        """Answer a conversation."""
        done = self._llm.chat(_messages(messages), **{**self.settings, **given})
        return ChatResponse(message=_answer(done.message), raw=done.to_dict())

    def stream_chat(self, messages: Sequence[ChatMessage], **given: Any) -> ChatResponseGen:
        """Answer a conversation, piece by piece; the last piece has the tool calls."""
        chunks = self._llm.chat_stream(_messages(messages), **{**self.settings, **given})

        def pieces() -> ChatResponseGen:
            text = ""
            for chunk in chunks:
                text += chunk.content
                message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
                if chunk.completion is not None:
                    message = _answer(chunk.completion.message)
                yield ChatResponse(message=message, delta=chunk.content, raw=chunk.to_dict())

        return pieces()

    # --- completions ---

    def complete(self, prompt: str, formatted: bool = False, **given: Any) -> CompletionResponse:
        """Continue a text."""
        done = self._llm.generate(prompt, **{**self.settings, **given})
        return CompletionResponse(text=done.text, raw={"finish_reason": done.finish_reason})

    def stream_complete(self, prompt: str, formatted: bool = False, **given: Any) -> CompletionResponseGen:
        """Continue a text, piece by piece."""
        chunks = self._llm.stream(prompt, **{**self.settings, **given})

        def pieces() -> CompletionResponseGen:
            text = ""
            for chunk in chunks:
                text += chunk.text
                yield CompletionResponse(text=text, delta=chunk.text)

        return pieces()

    # --- the same, awaited: requests of several tasks run in one batch ---

    async def achat(self, messages: Sequence[ChatMessage], **given: Any) -> ChatResponse:
        """`chat`, awaited."""
        return await asyncio.to_thread(self.chat, messages, **given)

    async def astream_chat(self, messages: Sequence[ChatMessage], **given: Any) -> ChatResponseAsyncGen:
        """`stream_chat`, awaited."""
        return awaited(self.stream_chat(messages, **given))

    async def acomplete(self, prompt: str, formatted: bool = False, **given: Any) -> CompletionResponse:
        """`complete`, awaited."""
        return await asyncio.to_thread(self.complete, prompt, formatted, **given)

    async def astream_complete(self, prompt: str, formatted: bool = False, **given: Any) -> CompletionResponseAsyncGen:
        """`stream_complete`, awaited."""
        return awaited(self.stream_complete(prompt, formatted, **given))

    # --- tools ---

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **given: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(
                user_msg if isinstance(user_msg, ChatMessage) else ChatMessage(role=MessageRole.USER, content=user_msg)
            )
        return {
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool() for tool in tools],
            "tool_choice": tool_choice or ("required" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **given,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **given: Any
    ) -> list[ToolSelection]:
        """The calls of an answer, their arguments as objects.

        Raises:
            ValueError: there are none, and that is an error; or arguments are no JSON object.
        """
        calls = response.message.additional_kwargs.get("tool_calls", [])
        if not calls and error_on_no_tool_call:
            raise ValueError("the model called no tool")
        return [
            ToolSelection(
                tool_id=call["id"],
                tool_name=call["function"]["name"],
                tool_kwargs=json.loads(call["function"]["arguments"]),
            )
            for call in calls
        ]


def _messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """LlamaIndex's messages in OpenAI's shape."""
    found = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role.value, "content": _content(message)}
        for name in ("tool_calls", "tool_call_id", "name"):
            if name in message.additional_kwargs:
                one[name] = message.additional_kwargs[name]
        found.append(one)
    return found


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    """What a message says: a text, or parts where there are images.

    Raises:
        InvalidRequest: it has sound, a video or a document.
    """
    parts: list[dict[str, Any]] = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            parts.append({"type": "text", "text": block.text})
        elif isinstance(block, ImageBlock):
            if block.url is not None and block.image is None and block.path is None:
                url = str(block.url)
            else:
                data = block.resolve_image(as_base64=True).read().decode("ascii")
                url = f"data:{block.image_mimetype or 'image/png'};base64,{data}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        elif block.block_type in ("audio", "video", "document"):
            raise InvalidRequest(f"a message has a block of kind {block.block_type!r}: texts and images are taken here")
    return parts if any(part["type"] != "text" for part in parts) else message.content or ""


def _answer(message: Any) -> ChatMessage:
    more = {"tool_calls": [call.to_dict() for call in message.tool_calls]} if message.tool_calls else {}
    return ChatMessage(role=MessageRole.ASSISTANT, content=message.content or "", additional_kwargs=more)


class LlcudaEmbedding(BaseEmbedding):  # type: ignore[misc]
    """LlamaIndex's embedding; the model's prompts "document" and "query" are used where it has them."""

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: str | Embedder, *, embed_batch_size: int = 512, **options: Any) -> None:
        """Take an Embedder, or make one of a model and Embedder's arguments."""
        embedder = model if isinstance(model, Embedder) else Embedder(model, **options)
        super().__init__(model_name=embedder.model.path.name, embed_batch_size=embed_batch_size)
        self._embedder = embedder

    def _encode(self, texts: list[str], prompt: str) -> list[list[float]]:
        known = prompt if prompt in self._embedder.prompts else None
        found: list[list[float]] = self._embedder.encode(texts, prompt_name=known, truncate=True).tolist()
        return found

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._encode([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._encode([text], "document")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._encode(texts, "document")
