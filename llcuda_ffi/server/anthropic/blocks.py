"""Writes an answer as Anthropic's content blocks, and the events by which a stream tells them."""

from __future__ import annotations

import json
from typing import Any

from ...chat.results import ChatChunk, ChatCompletion

Event = dict[str, Any]


def blocks_of(answer: ChatCompletion) -> list[dict[str, Any]]:
    """The content of a whole answer."""
    message, blocks = answer.message, []
    if message.reasoning_content:
        blocks.append({"type": "thinking", "thinking": message.reasoning_content, "signature": ""})
    if message.content:
        blocks.append({"type": "text", "text": message.content})
    for call in message.tool_calls:
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call.arguments)})
    return blocks


def _arguments(text: str) -> Any:
    """A call's input; what a small model wrote wrongly, or what was cut, is given as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"arguments": text}
    return value if isinstance(value, dict) else {"arguments": value}


class BlockWriter:
    """Puts a stream's pieces into blocks; each method gives the events that tell it."""

    def __init__(self) -> None:
        self._index, self._open, self._call = -1, "", -1

    def feed(self, chunk: ChatChunk) -> list[Event]:
        """A piece of a streamed chat."""
        events: list[Event] = []
        if chunk.reasoning_content:
            events += self._begin("thinking", thinking="", signature="")
            events.append(self._delta("thinking_delta", thinking=chunk.reasoning_content))
        if chunk.content:
            events += self._begin("text", text="")
            events.append(self._delta("text_delta", text=chunk.content))
        for call in chunk.tool_calls:
            if call.index != self._call:
                events += self.close()
                self._call = call.index
                events += self._begin("tool_use", id=call.id, name=call.name, input={})
            if call.arguments:
                events.append(self._delta("input_json_delta", partial_json=call.arguments))
        return events

    def close(self) -> list[Event]:
        """End the last block."""
        kind, self._open = self._open, ""
        if not kind:
            return []
        stop = {"type": "content_block_stop", "index": self._index}
        return [self._delta("signature_delta", signature=""), stop] if kind == "thinking" else [stop]

    def _begin(self, kind: str, **fields: Any) -> list[Event]:
        if self._open == kind:
            return []
        events = self.close()
        self._open, self._index = kind, self._index + 1
        block = {"type": kind, **fields}
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, kind: str, **fields: Any) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, **fields}}
