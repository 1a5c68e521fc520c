"""The methods that Llama and AsyncLlama have for conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from ..core.model import Model
from ..engine.results import Chunk
from ..engine.state import Engine
from ..errors import InvalidRequest, LlcudaError
from ..sampling_params import Params, SamplingParams, sampling_params, with_given
from ..sampling_settings import SamplingSettings
from .conversation import Chat
from .messages import Message
from .options import ChatOptions
from .request import ChatRequest
from .results import ChatChunk, ChatCompletion

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

Conversations = Sequence[Message] | Sequence[Sequence[Message]]


class _Engine(Protocol):
    model: Model
    engine: Engine
    chat_format: Chat | None

    def generate(self, prompt: Any, params: Any = None, *, return_exceptions: bool) -> Any: ...

    def stream(self, prompt: Any, params: SamplingParams | None = None) -> Iterator[Chunk]: ...


class _AsyncEngine(Protocol):
    @property
    def llama(self) -> Any: ...

    async def generate(self, prompt: Any, params: SamplingParams | None = None, *, return_exceptions: bool) -> Any: ...

    def stream(self, prompt: Any, params: SamplingParams | None = None) -> AsyncIterator[Chunk]: ...


def chat_of(llm: _Engine) -> Chat:
    """The Chat of a Llama, made when first needed."""
    if llm.chat_format is None:
        llm.chat_format = Chat(llm.model, getattr(llm, "media", None))
    return llm.chat_format


def prepare_all(
    llm: _Engine,
    messages: Conversations,
    params: Params | None,
    options: Mapping[str, Any],
    refused: list[tuple[int, LlcudaError]] | None = None,
) -> tuple[list[ChatRequest], bool]:
    """The conversations ready to be generated, and whether there was a list of them.

    Args:
        refused: gets the place and the exception of each conversation that cannot be answered, instead of the first
            exception being raised.

    Raises:
        InvalidRequest: as `Llama.chat`; of several conversations the message says which.
        ClosedError, EngineFailure, ConcurrentUseError: as `Llama.generate`.
    """
    llm.engine.check()
    names = {n: options[n] for n in _OPTIONS if n in options}
    settings = {n: v for n, v in options.items() if n not in _OPTIONS}
    # an answer ends where the model ends it, unless the caller says otherwise
    if params is None or isinstance(params, Mapping):
        params = {"max_tokens": None, **(params or {})}
    params = sampling_params(params, settings)
    chat = chat_of(llm)
    many = isinstance(messages, Sequence) and len(messages) > 0 and isinstance(messages[0], (list, tuple))
    requests = []
    for i, conversation in enumerate(messages if many else [messages]):
        try:
            requests.append(chat.prepare(conversation, params, **names))  # type: ignore[arg-type]
        except InvalidRequest as error:
            if refused is None:
                raise (type(error)(f"conversation {i}: {error}") if many else error) from None
            refused.append((i, error))
    return requests, many


def _answers(requests: Sequence[ChatRequest], done: Sequence[Any], refused: Sequence[tuple[int, LlcudaError]]) -> Any:
    """The answers in the conversations' order; an exception stays as it is, and stands in its place."""
    found: list[Any] = [
        d if isinstance(d, LlcudaError) else r.answer(d if isinstance(d, list) else [d])
        for r, d in zip(requests, done, strict=True)
    ]
    for place, error in refused:
        found.insert(place, error)
    return found


_OPTIONS = frozenset(ChatOptions.__annotations__) - frozenset(SamplingSettings.__annotations__)


class ChatMethods:
    """chat and chat_stream, for Llama."""

    chat_format: Chat | None = None

    @overload
    def chat(
        self: _Engine,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        json_schema: type[T],
        n: int = ...,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion[T | None]: ...
    @overload
    def chat(
        self: _Engine,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        json_schema: Any = ...,
        n: int = ...,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...
    @overload
    def chat(
        self: _Engine,
        messages: Sequence[Sequence[Message]],
        params: Params | None = None,
        *,
        json_schema: Any = ...,
        n: int = ...,
        **options: Unpack[ChatOptions],
    ) -> list[ChatCompletion]: ...
    @overload
    def chat(
        self: _Engine,
        messages: Conversations,
        params: Params | None = None,
        *,
        return_exceptions: bool,
        json_schema: Any = ...,
        n: int = ...,
        **options: Unpack[ChatOptions],
    ) -> Any: ...
    def chat(
        self: _Engine,
        messages: Conversations,
        params: Params | None = None,
        *,
        return_exceptions: bool = False,
        **options: Any,
    ) -> Any:
        """Answer a conversation.

            llm.chat([{"role": "user", "content": "Hi"}]).text

        Args:
            messages: OpenAI's messages; a list of such lists is answered together. A ChatMessage of an earlier
                answer may stand in it.
            params: settings; without them the answer is as long as the model makes it (max_tokens=None).
            return_exceptions: put the exception of a conversation in the place of its answer, instead of raising the
                first.
            **options: see ChatOptions; fields of SamplingParams among them, over `params`.

        Returns:
            a ChatCompletion; for a list of conversations a list in the same order.

        Raises:
            InvalidRequest: the conversation, a tool or a setting is not acceptable, or the template refuses.
            as `generate` otherwise.
        """
        refused: list[tuple[int, LlcudaError]] = []
        requests, many = prepare_all(self, messages, params, options, refused if return_exceptions else None)
        if many:
            prompts, settings = [r.prompt for r in requests], [r.params for r in requests]
            done = self.generate(prompts, settings, return_exceptions=return_exceptions)
        else:
            done = [self.generate(r.prompt, r.params, return_exceptions=return_exceptions) for r in requests]
        answers = _answers(requests, done, refused)
        return answers if many else answers[0]

    def chat_stream(
        self: _Engine,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        json_schema: Any = None,
        n: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> Iterator[ChatChunk]:
        """Answer a conversation piece by piece; takes what `chat` takes, for one conversation.

        Yields:
            ChatChunks; the last one has finish_reason and the ChatCompletion. Closing the iterator cancels.
        """
        requests, many = prepare_all(self, messages, params, with_given(options, n=n, json_schema=json_schema))
        if many:
            raise InvalidRequest("a stream answers one conversation: give one list of messages")
        chunks = self.stream(requests[0].prompt, requests[0].params)
        return _stream(requests[0], chunks)

    def chat_prompt(self: _Engine, messages: Sequence[Message], **options: Any) -> str:
        """The prompt that `chat` would continue, as text; takes what `chat` takes."""
        requests, many = prepare_all(self, messages, None, options)
        if many:
            raise InvalidRequest("give one list of messages")
        return requests[0].text


class AsyncChatMethods:
    """chat and chat_stream, for AsyncLlama."""

    @overload
    async def chat(
        self: _AsyncEngine,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        json_schema: type[T],
        n: int = ...,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion[T | None]: ...
    @overload
    async def chat(
        self: _AsyncEngine,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        json_schema: Any = ...,
        n: int = ...,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...
    @overload
    async def chat(
        self: _AsyncEngine,
        messages: Sequence[Sequence[Message]],
        params: Params | None = None,
        *,
        json_schema: Any = ...,
        n: int = ...,
        **options: Unpack[ChatOptions],
    ) -> list[ChatCompletion]: ...
    @overload
    async def chat(
        self: _AsyncEngine,
        messages: Conversations,
        params: Params | None = None,
        *,
        return_exceptions: bool,
        json_schema: Any = ...,
        n: int = ...,
        **options: Unpack[ChatOptions],
    ) -> Any: ...
    async def chat(
        self: _AsyncEngine,
        messages: Conversations,
        params: Params | None = None,
        *,
        return_exceptions: bool = False,
        **options: Any,
    ) -> Any:
        """As Llama.chat: a ChatCompletion, or a list of them for a list of conversations."""
        refused: list[tuple[int, LlcudaError]] = []
        kept = refused if return_exceptions else None
        # rendering and compiling a grammar take milliseconds: not in the event loop
        requests, many = await asyncio.to_thread(prepare_all, self.llama, messages, params, options, kept)
        done = await asyncio.gather(
            *(self.generate(r.prompt, r.params, return_exceptions=return_exceptions) for r in requests)
        )
        answers = _answers(requests, done, refused)
        return answers if many else answers[0]

    async def chat_stream(
        self: _AsyncEngine,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        json_schema: Any = None,
        n: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncIterator[ChatChunk]:
        """As Llama.chat_stream, for `async for`."""
        given = with_given(options, n=n, json_schema=json_schema)
        requests, many = await asyncio.to_thread(prepare_all, self.llama, messages, params, given)
        if many:
            raise InvalidRequest("a stream answers one conversation: give one list of messages")
        stream = requests[0].stream()
        chunks = self.stream(requests[0].prompt, requests[0].params)
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
