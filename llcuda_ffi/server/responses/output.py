"""Writes the output of a response: its items, and the events by which a stream tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...chat.identity import new_id
from ...chat.results import ChatChunk, ChatCompletion

Event = dict[str, Any]


class OutputWriter:
    """Puts an answer's pieces into items. Each method gives the events that tell what it did, without their numbers.

    Attributes:
        items: reasoning, messages and calls so far, as the response holds them.
    """

    def __init__(self, namespaces: Mapping[str, str] | None = None) -> None:
        """Begin without items; `namespaces`: the groups of functions that have one, by their names."""
        self._namespaces = namespaces or {}
        self.items: list[dict[str, Any]] = []
        self._open = ""  # the type of the last item while it may still grow
        self._call = -1
        self._late: list[Any] = []  # log probabilities of tokens that no text came of yet

    def feed(self, chunk: ChatChunk, logprobs: Sequence[Any] = ()) -> list[Event]:
        """A piece of a streamed chat."""
        events: list[Event] = []
        if chunk.reasoning_content:
            events += self.reasoning(chunk.reasoning_content)
        if chunk.content:
            events += self.text(chunk.content, logprobs)
        elif not chunk.tool_calls:
            self._late += logprobs
        for call in chunk.tool_calls:
            events += self.call(call.index, call.id, call.name, call.arguments)
        return events

    def whole(self, answer: ChatCompletion, logprobs: Sequence[Any] = ()) -> None:
        """A whole answer."""
        message = answer.message
        if message.reasoning_content:
            self.reasoning(message.reasoning_content)
        if message.content:
            self.text(message.content, logprobs)
        for i, call in enumerate(message.tool_calls):
            self.call(i, call.id, call.name, call.arguments)
        self.close(cut=answer.finish_reason not in ("stop", "tool_calls"))

    def reasoning(self, text: str) -> list[Event]:
        """More of the model's thinking."""
        events = self._begin("reasoning", "rs", summary=[], content=[{"type": "reasoning_text", "text": ""}])
        self.items[-1]["content"][0]["text"] += text
        return [*events, self._event("reasoning_text.delta", content_index=0, delta=text)]

    def text(self, text: str, logprobs: Sequence[Any] = ()) -> list[Event]:
        """More of the answer's text."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        events = self._begin("message", "msg", role="assistant", content=[part])
        part = self.items[-1]["content"][0]
        found, self._late = [*self._late, *logprobs], []
        part["text"] += text
        part["logprobs"] += found
        return [*events, self._event("output_text.delta", content_index=0, delta=text, logprobs=found)]

    def call(self, index: int, call_id: str | None, name: str | None, arguments: str) -> list[Event]:
        """A call, or more of its arguments."""
        events: list[Event] = []
        if index != self._call:
            events = self.close()
            self._call = index
            group = {} if name not in self._namespaces else {"namespace": self._namespaces[str(name)]}
            events += self._begin("function_call", "fc", call_id=call_id, name=name, arguments="", **group)
        if arguments:
            self.items[-1]["arguments"] += arguments
            events.append(self._event("function_call_arguments.delta", delta=arguments))
        return events

    def close(self, *, cut: bool = False) -> list[Event]:
        """End the last item; `cut`: it is not whole."""
        events = self.text("") if self._open == "message" and self._late else []
        kind, self._open = self._open, ""
        if not kind:
            return []
        item = self.items[-1]
        item["status"] = "incomplete" if cut else "completed"
        if kind == "function_call":
            events.append(self._event("function_call_arguments.done", arguments=item["arguments"], name=item["name"]))
        else:
            part = item["content"][0]
            done = "output_text.done" if kind == "message" else "reasoning_text.done"
            more = {"logprobs": part["logprobs"]} if kind == "message" else {}
            events.append(self._event(done, content_index=0, text=part["text"], **more))
            events.append(self._event("content_part.done", content_index=0, part=dict(part)))
        events.append({"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": dict(item)})
        return events

    def _begin(self, kind: str, prefix: str, **parts: Any) -> list[Event]:
        if self._open == kind:
            return []
        events = self.close()
        if kind != "function_call":
            self._call = -1
        self._open = kind
        item = {"id": f"{prefix}_{new_id(16)}", "type": kind, "status": "in_progress", **parts}
        self.items.append(item)
        empty = {**item, "content": []} if "content" in item else dict(item)
        events.append({"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": empty})
        if "content" in item:
            events.append(self._event("content_part.added", content_index=0, part=dict(item["content"][0])))
        return events

    def _event(self, kind: str, /, **more: Any) -> Event:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **place, **more}
