"""What a parser makes of an answer: pieces of content, of reasoning and of tool calls, in order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class CallDelta:
    """A piece of a tool call.

    Attributes:
        index: which call of the answer.
        name: the function, in the first piece of the call only.
        id: the call's id, in the first piece, where the format has ids.
        arguments: more of the arguments' JSON text.
    """

    index: int
    name: str | None = None
    id: str | None = None
    arguments: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it in a chunk."""
        function: dict[str, Any] = {"arguments": self.arguments}
        if self.name is None:
            return {"index": self.index, "function": function}
        function["name"] = self.name
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


@dataclass(slots=True)
class Delta:
    """A piece of an answer; one of its parts is set."""

    content: str = ""
    reasoning: str = ""
    call: CallDelta | None = None


@dataclass(slots=True)
class ToolCall:
    """A call that the model asks for.

    Attributes:
        id: names the call; the tool message that answers it carries the same tool_call_id.
        name: the function.
        arguments: JSON text, as the model wrote it; with a small model, or cut by max_tokens, it may not
            parse.
    """

    id: str
    name: str
    arguments: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it in a message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}

    def parsed_arguments(self) -> Any:
        """The arguments as a value.

        Raises:
            ValueError: the model wrote no valid JSON.
        """
        try:
            return json.loads(self.arguments or "{}")
        except RecursionError:
            raise ValueError("the arguments are nested too deep") from None


@dataclass(slots=True)
class Parsed:
    """An answer taken apart.

    Attributes:
        content: what is meant for the user.
        reasoning: what the model marked as its thinking.
        tool_calls: the functions that it wants called.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """One more piece."""
        self.content += delta.content
        self.reasoning += delta.reasoning
        call = delta.call
        if call is not None:
            if call.index == len(self.tool_calls):
                self.tool_calls.append(ToolCall(call.id or "", call.name or ""))
            self.tool_calls[call.index].arguments += call.arguments


class Output:
    """Collects deltas. White space before and after reasoning and calls is not content.

    Attributes:
        names: the functions there are; None takes any name.
        schemas: their parameters, for formats that do not write types.
    """

    def __init__(
        self, names: frozenset[str] | None = None, schemas: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.names, self.schemas = names, schemas or {}
        self._deltas: list[Delta] = []
        self._calls = 0
        self._space = ""  # at the end of the content: shown when more content follows
        self._trim = False
        self._thought = ""
        self._fresh = True

    def take(self) -> list[Delta]:
        """What came since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def content(self, text: str) -> None:
        """Text for the user."""
        if self._trim:
            text = text.lstrip()
            if not text:
                return
            self._trim = False
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._deltas.append(Delta(content=shown))

    def reasoning(self, text: str) -> None:
        """The model's thinking; white space at its ends is dropped."""
        if self._fresh:
            text = text.lstrip()
            if not text:
                return
            self._fresh = False
        text = self._thought + text
        shown = text.rstrip()
        self._thought = text[len(shown) :]
        if shown:
            self._deltas.append(Delta(reasoning=shown))

    def part(self) -> None:
        """Something that is no content begins or ends here."""
        self._space, self._trim, self._thought, self._fresh = "", True, "", True

    def call(self, name: str, id: str | None = None) -> None:
        """A call begins."""
        self.part()
        self._deltas.append(Delta(call=CallDelta(self._calls, name, id)))
        self._calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the last call."""
        self._deltas.append(Delta(call=CallDelta(self._calls - 1, arguments=text)))

    def end(self) -> None:
        """The answer is over: white space at the end of content is content."""
        if self._space:
            self._deltas.append(Delta(content=self._space))
            self._space = ""
