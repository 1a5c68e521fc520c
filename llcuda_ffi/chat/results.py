"""What a chat gives back, in OpenAI's shapes: as objects, and as plain dicts by `to_dict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal

from ..engine.results import Timings, TokenLogprob, Usage
from ..html_view import block, counted, folded, small
from .parsing.deltas import CallDelta, ToolCall

ChatFinish = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(slots=True)
class ChatMessage:
    """A message of the assistant; append it to the conversation as it is.

    Attributes:
        content: the text, None where the answer is calls only.
        reasoning_content: what the model marked as its thinking.
        tool_calls: functions that the model wants called.
    """

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    role: str = "assistant"

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            out["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            out["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return out


@dataclass(slots=True)
class ChatChoice:
    """One of n answers.

    Attributes:
        finish_reason: "stop" (the model ended, or a stop string), "tool_calls", "length" or "cancelled". "tool_calls"
            says that no call was cut; see ToolCall.complete.
        logprobs: one entry for each token, when asked for.
        parsed: the value of a structured output.
    """

    index: int
    message: ChatMessage
    finish_reason: ChatFinish
    logprobs: list[TokenLogprob] | None = None
    parsed: Any = None

    def as_html(self) -> str:
        """The answer for a notebook's cell: its thinking folded, its calls, its value."""
        message = self.message
        parts = [folded("thinking", message.reasoning_content)] if message.reasoning_content else []
        parts += [block(message.content)] if message.content else []
        parts += [block(f"{call.name}({call.arguments})") for call in message.tool_calls]
        parts += [block(repr(self.parsed))] if self.parsed is not None else []
        return "".join([*parts, small(self.finish_reason)])


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")


@dataclass(slots=True)
class ChatCompletion(Generic[T]):
    """An answered conversation.

    Attributes:
        choices: n answers, in order.
        usage: prompt, cached and generated tokens, over all choices.
        timings: of the first choice.
        prompt: the rendered prompt.
        prompt_tokens: its token ids.
        model: the model's name.
        created: seconds since 1970.
    """

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings
    prompt: str
    prompt_tokens: list[int] = field(repr=False)

    @property
    def message(self) -> ChatMessage:
        """The first answer."""
        return self.choices[0].message

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.message.content or ""

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The first answer's calls."""
        return self.message.tool_calls

    @property
    def finish_reason(self) -> ChatFinish:
        """Why the first answer ended."""
        return self.choices[0].finish_reason

    @property
    def parsed(self) -> T:
        """The value of a structured output, None otherwise."""
        value: T = self.choices[0].parsed
        return value

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        shown = "".join(choice.as_html() for choice in self.choices)
        return shown + small(self.model, *counted(self.usage, self.timings.tokens_per_s))

    def to_dict(self) -> dict[str, Any]:
        """The JSON of OpenAI's chat.completion."""
        choices = [
            {
                "index": c.index,
                "message": c.message.to_dict(),
                "finish_reason": openai_finish(c.finish_reason),
                "logprobs": logprobs_dict(c.logprobs),
            }
            for c in self.choices
        ]
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage_dict(self.usage),
        }


@dataclass(slots=True)
class ChatChunk:
    """A piece of a streamed answer.

    Attributes:
        content, reasoning_content: new text.
        tool_calls: new pieces of calls.
        token_ids: the tokens since the last chunk; those of a mark, or of text held back, come with the next text.
        logprobs: one entry for each of them, when asked for.
        finish_reason: None until the last chunk.
        completion: the whole, in the last chunk only; of n answers each has one of its own.
        index: which of n answers it belongs to.
    """

    id: str
    created: int
    model: str
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[CallDelta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: ChatFinish | None = None
    completion: ChatCompletion | None = field(default=None, repr=False)
    index: int = 0

    @property
    def text(self) -> str:
        """The new content."""
        return self.content

    @property
    def is_text(self) -> bool:
        """Whether it brings content and nothing else, as most do."""
        return not (self.reasoning_content or self.tool_calls or self.logprobs or self.finish_reason)

    def __str__(self) -> str:
        return self.content

    def to_dict(self) -> dict[str, Any]:
        """The JSON of OpenAI's chat.completion.chunk."""
        delta: dict[str, Any] = {}
        if self.content:
            delta["content"] = self.content
        if self.reasoning_content:
            delta["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            delta["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        choice = {
            "index": self.index,
            "delta": delta,
            "finish_reason": openai_finish(self.finish_reason),
            "logprobs": logprobs_dict(self.logprobs),
        }
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }


def openai_finish(reason: str | None) -> str | None:
    """A finish reason as OpenAI has it: what a timeout ended was too long."""
    return "length" if reason == "cancelled" else reason


def usage_dict(usage: Usage) -> dict[str, Any]:
    """Usage as OpenAI writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def logprobs_dict(logprobs: list[TokenLogprob] | None) -> dict[str, Any] | None:
    """Log probabilities as OpenAI writes them, and the ids of the likeliest."""
    if logprobs is None:
        return None

    def one(piece: bytes, value: float) -> dict[str, Any]:
        return {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": value}

    content = [
        {
            **one(entry.bytes, entry.logprob),
            "top_logprobs": [
                {"token_id": token, **one(piece, value)}
                for (token, value), piece in zip(entry.top, entry.top_bytes, strict=True)
            ],
        }
        for entry in logprobs
    ]
    return {"content": content}
