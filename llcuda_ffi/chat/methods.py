"""The methods that Llama and AsyncLlama have for conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ..core.model import Model
from ..engine.results import Chunk
from ..errors import InvalidRequest
from ..params import override
from ..sampling_params import SamplingParams
from .conversation import Chat, ToolChoice
from .messages import Message
from .request import ChatRequest
from .results import ChatChunk
from .tools.functions import Tool

Conversations = Sequence[Message] | Sequence[Sequence[Message]]


class _Engine(Protocol):
    model: Model
    _chat: Chat | None

    def generate(self, prompt: Any, params: Any = None) -> Any: ...

    def stream(self, prompt: Any, params: SamplingParams | None = None) -> Iterator[Chunk]: ...


class _AsyncEngine(Protocol):
    @property
    def llama(self) -> Any: ...

    async def generate(self, prompt: Any, params: SamplingParams | None = None) -> Any: ...

    def stream(self, prompt: Any, params: SamplingParams | None = None) -> AsyncIterator[Chunk]: ...


def chat_of(llm: _Engine) -> Chat:
    """The Chat of a Llama, made when first needed."""
    if llm._chat is None:
        llm._chat = Chat(llm.model)
    return llm._chat


def prepare_all(
    llm: _Engine, messages: Conversations, params: SamplingParams | None, options: Mapping[str, Any]
) -> tuple[list[ChatRequest], bool]:
    """The conversations ready to be generated, and whether there was a list of them.

    Raises:
        InvalidRequest: as `Llama.chat`; of several conversations the message says which.
    """
    if params is not None and not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params must be SamplingParams, not {type(params).__name__}")
    names = {n: options[n] for n in _OPTIONS if n in options}
    settings = {n: v for n, v in options.items() if n not in _OPTIONS}
    # an answer ends where the model ends it, unless the caller says otherwise
    params = override(params or SamplingParams(max_tokens=None), settings)
    chat = chat_of(llm)
    many = isinstance(messages, Sequence) and len(messages) > 0 and isinstance(messages[0], (list, tuple))
    if not many:
        return [chat.prepare(messages, params, **names)], False  # type: ignore[arg-type]
    requests = []
    for i, conversation in enumerate(messages):
        try:
            requests.append(chat.prepare(conversation, params, **names))  # type: ignore[arg-type]
        except InvalidRequest as error:
            raise type(error)(f"conversation {i}: {error}") from None
    return requests, True


_OPTIONS = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "template",
    "chat_template_kwargs",
    "documents",
    "continue_final_message",
    "tool_format",
)


class ChatMethods:
    """chat and chat_stream, for Llama."""

    _chat: Chat | None = None

    def chat(
        self: _Engine,
        messages: Conversations,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        response_format: Mapping[str, Any] | None = None,
        template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | None = None,
        tool_format: str | None = None,
        **settings: Any,
    ) -> Any:
        """Answer a conversation.

            llm.chat([{"role": "user", "content": "Hi"}]).text

        Args:
            messages: OpenAI's messages; a list of such lists is answered together. A ChatMessage of an earlier
                answer may stand in it.
            params: settings; without them the answer is as long as the model makes it (max_tokens=None).
            tools: JSON schemas ({"type": "function", …}), or functions with type hints and a docstring.
            tool_choice: "auto", "none", "required", or a function's name; the last two force calls that parse.
            parallel_tool_calls: whether a forced answer may be several calls.
            response_format: OpenAI's; json_schema= and its like in `settings` do the same.
            template: a Jinja text or a built-in name, in place of the model's own template.
            chat_template_kwargs: more for the template, such as {"enable_thinking": False}.
            documents: for templates that take them.
            continue_final_message: go on with the last message instead of starting an answer. None: where it is an
                assistant's text.
            tool_format: how the model writes calls, where the template does not tell (chat.parser.FORMATS).
            **settings: fields of SamplingParams, over `params`.

        Returns:
            a ChatCompletion; for a list of conversations a list in the same order.

        Raises:
            InvalidRequest: the conversation, a tool or a setting is not acceptable, or the template refuses.
            as `generate` otherwise.
        """
        options = dict(
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            template=template,
            chat_template_kwargs=chat_template_kwargs,
            documents=documents,
            continue_final_message=continue_final_message,
            tool_format=tool_format,
            **settings,
        )
        requests, many = prepare_all(self, messages, params, options)
        if many:
            done = self.generate([r.tokens for r in requests], [r.params for r in requests])
        else:
            done = [self.generate(requests[0].tokens, requests[0].params)]
        answers = [r.answer(d if isinstance(d, list) else [d]) for r, d in zip(requests, done, strict=True)]
        return answers if many else answers[0]

    def chat_stream(
        self: _Engine, messages: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> Iterator[ChatChunk]:
        """Answer a conversation piece by piece; takes what `chat` takes, for one conversation and n=1.

        Yields:
            ChatChunks; the last one has finish_reason and the ChatCompletion. Closing the iterator cancels.
        """
        requests, many = prepare_all(self, messages, params, options)
        if many:
            raise InvalidRequest("a stream answers one conversation: give one list of messages")
        chunks = self.stream(requests[0].tokens, requests[0].params)
        return _stream(requests[0], chunks)

    def chat_prompt(self: _Engine, messages: Sequence[Message], **options: Any) -> str:
        """The prompt that `chat` would continue, as text; takes what `chat` takes."""
        requests, many = prepare_all(self, messages, None, options)
        if many:
            raise InvalidRequest("give one list of messages")
        return requests[0].text


class AsyncChatMethods:
    """chat and chat_stream, for AsyncLlama."""

    async def chat(
        self: _AsyncEngine, messages: Conversations, params: SamplingParams | None = None, **options: Any
    ) -> Any:
        """As Llama.chat: a ChatCompletion, or a list of them for a list of conversations."""
        # rendering and compiling a grammar take milliseconds: not in the event loop
        requests, many = await asyncio.to_thread(prepare_all, self.llama, messages, params, options)
        done = await asyncio.gather(*(self.generate(r.tokens, r.params) for r in requests))
        answers = [r.answer(d if isinstance(d, list) else [d]) for r, d in zip(requests, done, strict=True)]
        return answers if many else answers[0]

    async def chat_stream(
        self: _AsyncEngine, messages: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> AsyncIterator[ChatChunk]:
        """As Llama.chat_stream, for `async for`."""
        requests, many = await asyncio.to_thread(prepare_all, self.llama, messages, params, options)
        if many:
            raise InvalidRequest("a stream answers one conversation: give one list of messages")
        stream = requests[0].stream()
        chunks = self.stream(requests[0].tokens, requests[0].params)
        try:
            async for chunk in chunks:
                for piece in stream.feed(chunk):
                    yield piece
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()


def _stream(request: ChatRequest, chunks: Iterator[Chunk]) -> Iterator[ChatChunk]:
    stream = request.stream()
    try:
        for chunk in chunks:
            yield from stream.feed(chunk)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
