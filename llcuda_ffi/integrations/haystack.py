"""Haystack: a chat generator over Llama, with tools and streaming."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import ChatMessage, StreamingChunk, ToolCall

from ..llama import Llama


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
        tools: list[Any] | None = None,
        streaming_callback: Callable[[StreamingChunk], None] | None = None,
    ) -> None:
        """Say which model, and how.

        Args:
            model: as Llama takes it.
            settings: fields of SamplingParams, for every run.
            options: arguments of Llama.
            tools: Haystack's tools.
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
        self, messages: list[ChatMessage], generation_kwargs: dict[str, Any] | None = None
    ) -> dict[str, list[ChatMessage]]:
        """Answer a conversation; `generation_kwargs` are fields of SamplingParams for this run."""
        self.warm_up()
        assert self._llm is not None
        given: dict[str, Any] = {**self.settings, **(generation_kwargs or {})}
        if self.tools:
            given["tools"] = [{"type": "function", "function": tool.tool_spec} for tool in self.tools]
        done = None
        for chunk in self._llm.chat_stream([message.to_openai_dict_format() for message in messages], **given):
            if self.streaming_callback is not None and chunk.content:
                self.streaming_callback(StreamingChunk(content=chunk.content))
            done = chunk.completion or done
        assert done is not None
        calls = [ToolCall(tool_name=c.name, arguments=json.loads(c.arguments), id=c.id) for c in done.tool_calls]
        meta = {"model": done.model, "finish_reason": done.finish_reason, "usage": done.to_dict()["usage"]}
        return {"replies": [ChatMessage.from_assistant(done.text or None, tool_calls=calls, meta=meta)]}
