"""What a parser makes of an answer: pieces of content, of reasoning and of tool calls, in order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
        arguments: JSON text, as the model wrote it. See `complete`.
    """

    id: str
    name: str
    arguments: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it in a message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}

    @property
    def complete(self) -> bool:
        """Whether the arguments are a JSON object. They are not where max_tokens or a stop string cut the call (the
        finish_reason is then "length" or "stop"), or where a small model wrote something else."""
        try:
            return isinstance(self.parsed_arguments(), dict)
        except ValueError:
            return False

    def parsed_arguments(self) -> Any:
        """The arguments as a value.

        Raises:
            ValueError: the model wrote no valid JSON.
        """
        try:
            return json.loads(self.arguments)
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

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> Parsed:
        """The answer that came in pieces."""
        content, reasoning = [], []
        calls: list[tuple[ToolCall, list[str]]] = []
        for delta in deltas:
            content.append(delta.content)
            reasoning.append(delta.reasoning)
            call = delta.call
            if call is not None:
                if call.index == len(calls):
                    calls.append((ToolCall(call.id or "", call.name or ""), []))
                calls[call.index][1].append(call.arguments)
        for made, arguments in calls:
            made.arguments = "".join(arguments)
        return cls("".join(content), "".join(reasoning), [made for made, _ in calls])


class Output:
    """Collects deltas. White space before and after reasoning and calls is not content.

    Attributes:
        names: the functions there are; None takes any name.
        schemas: their parameters, for formats that do not write types.
        calls_only: a grammar lets nothing but calls be written, so what is not one is a mark.
    """

    def __init__(
        self,
        names: frozenset[str] | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        calls_only: bool = False,
    ) -> None:
        self.names, self.schemas, self.calls_only = names, schemas or {}, calls_only
        self._deltas: list[Delta] = []
        self._calls = 0
        self._ids: set[str] = set()
        self._empty_call = False  # the last call has no arguments yet
        self._content, self._reasoning = _Trimmed(lead=False), _Trimmed(lead=True)

    def take(self) -> list[Delta]:
        """What came since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def content(self, text: str) -> None:
        """Text for the user."""
        if not self.calls_only and (shown := self._content.add(text)):
            self._deltas.append(Delta(content=shown))

    def reasoning(self, text: str) -> None:
        """The model's thinking; white space at its ends is dropped."""
        if shown := self._reasoning.add(text):
            self._deltas.append(Delta(reasoning=shown))

    def part(self) -> None:
        """Something that is no content begins or ends here."""
        self._content, self._reasoning = _Trimmed(lead=True), _Trimmed(lead=True)

    def call(self, name: str, id: str | None = None) -> None:
        """A call begins; an id that an earlier call of the answer has names nothing, so it gets another one."""
        if id is not None:
            id = None if id in self._ids else id
            self._ids.add(id or "")
        self._complete_call()
        self.part()
        self._deltas.append(Delta(call=CallDelta(self._calls, name, id)))
        self._calls += 1
        self._empty_call = True

    def arguments(self, text: str) -> None:
        """More of the arguments of the last call."""
        if text:
            self._empty_call = False
            self._deltas.append(Delta(call=CallDelta(self._calls - 1, arguments=text)))

    def _complete_call(self) -> None:
        """A call without arguments has none: {}."""
        if self._empty_call:
            self.arguments("{}")

    def end(self, *, cut: bool) -> None:
        """The answer is over: white space at the end of content is content.

        Args:
            cut: it was not the model that ended it, so a call without arguments may have had some.
        """
        if not cut:
            self._complete_call()
        if space := self._content.space():
            self._deltas.append(Delta(content=space))


class _Trimmed:
    """A text that comes in pieces, without the white space at its end, and at its start where `lead` is set."""

    def __init__(self, *, lead: bool) -> None:
        self._lead = lead
        self._space: list[str] = []  # shown when more follows

    def add(self, text: str) -> str:
        """What can be shown after one more piece."""
        if self._lead:
            text = text.lstrip()
            self._lead = not text
        shown = text.rstrip()
        if not shown:
            if text:
                self._space.append(text)
            return ""
        before, self._space = "".join(self._space), []
        if len(shown) < len(text):
            self._space.append(text[len(shown) :])
        return before + shown

    def space(self) -> str:
        """The white space at the end."""
        return "".join(self._space)
