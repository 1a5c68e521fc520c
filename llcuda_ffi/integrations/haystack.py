"""Haystack: a chat generator over Llama, with tools and streaming."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import ChatMessage, StreamingChunk, ToolCall

from ..chat.results import ChatCompletion
from ..llama import Llama

_log = logging.getLogger(__name__)


@component
class LlcudaChatGenerator:
    """A component: messages in, replies out. The model is loaded by `warm_up` or at the first run.

    LlcudaChatGenerator("smollm2-135m", settings={"temperature": 0}).run([ChatMessage.from_user("Hi")])
    """

    def __init__(
        self,
        model: str,
        *,
        settings: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        tools: Any = None,
        streaming_callback: Callable[[StreamingChunk], None] | None = None,
    ) -> None:
        """Say which model, and how.

        Args:
            model: as Llama takes it.
            settings: fields of SamplingParams, for every run.
            options: arguments of Llama.
            tools: Haystack's tools, or sets of them.
            streaming_callback: called with each piece of an answer.
        """
        self.model, self.settings, self.options = model, settings or {}, options or {}
        self.tools, self.streaming_callback = tools or [], streaming_callback
        self._llm: Llama | None = None

    def warm_up(self) -> None:
        """Load the model."""
        if self._llm is None:
            self._llm = Llama(self.model, **self.options)

    def to_dict(self) -> dict[str, Any]:
        """For pipelines that are saved; tools and callbacks are given anew."""
        found: dict[str, Any] = default_to_dict(self, model=self.model, settings=self.settings, options=self.options)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LlcudaChatGenerator:
        """The component that `to_dict` described."""
        made: LlcudaChatGenerator = default_from_dict(cls, data)
        return made

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage],
        streaming_callback: Callable[[StreamingChunk], None] | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        tools: Any = None,
    ) -> dict[str, list[ChatMessage]]:
        """Answer a conversation.

        Args:
            streaming_callback, tools: for this run, in the place of the component's own.
            generation_kwargs: fields of SamplingParams for this run.
        """
        self.warm_up()
        assert self._llm is not None
        given: dict[str, Any] = {**self.settings, **(generation_kwargs or {})}
        callback = streaming_callback or self.streaming_callback
        if specs := list(_specs(tools or self.tools)):
            given["tools"] = [{"type": "function", "function": spec} for spec in specs]
        done: list[ChatCompletion] = []
        for chunk in self._llm.chat_stream([message.to_openai_dict_format() for message in messages], **given):
            if callback is not None and chunk.content:
                callback(StreamingChunk(content=chunk.content))
            if chunk.completion is not None:
                done.append(chunk.completion)
        return {"replies": [_reply(one) for one in done]}


def _specs(tools: Any) -> Iterator[dict[str, Any]]:
    """What the model is told of tools and of sets of them."""
    for one in tools:
        if hasattr(one, "tool_spec"):
            yield one.tool_spec
        else:
            yield from _specs(one)


def _reply(done: ChatCompletion) -> ChatMessage:
    """An answer; calls whose arguments were cut are left out, which `finish_reason` tells too."""
    calls = []
    for call in done.tool_calls:
        try:
            calls.append(ToolCall(tool_name=call.name, arguments=json.loads(call.arguments), id=call.id))
        except ValueError:
            _log.warning("the arguments of a call of %s are no JSON: %.200s", call.name, call.arguments)
    meta = {"model": done.model, "finish_reason": done.finish_reason, "usage": done.to_dict()["usage"]}
    return ChatMessage.from_assistant(done.text or None, tool_calls=calls, meta=meta)
