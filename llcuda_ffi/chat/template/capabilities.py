"""What a chat template can do, told by rendering small conversations with it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import InvalidRequest

_PROBE = "llcuda-probe"
_PARAMETERS = {"type": "object", "properties": {}}

# (conversation, tools) → the prompt; InvalidRequest where the template refuses or fails
Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None], str]


class TemplateCapabilities:
    """What a template takes. Each answer is found when it is first asked for."""

    def __init__(self, source: str, render: Render) -> None:
        self._source, self._render = source, render

    def _try(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        try:
            return self._render(messages, tools or self.no_tools)
        except InvalidRequest:
            return ""

    @functools.cached_property
    def no_tools(self) -> list[Mapping[str, Any]] | None:
        """What it takes for no tools: None, as transformers gives it, or an empty list."""
        try:
            self._render([_user("q")], None)
        except InvalidRequest:
            return []
        return None

    def mentions(self, name: str) -> bool:
        """Whether the template's text names something: a role, a key of messages, a variable."""
        return re.search(rf"\b{re.escape(name)}\b", self._source) is not None

    @functools.cached_property
    def tools(self) -> bool:
        """Whether tools given to it show in what it writes."""
        tool = {"type": "function", "function": {"name": _PROBE, "description": "d", "parameters": _PARAMETERS}}
        return _PROBE in self._try([_user("q")], [tool])

    @functools.cached_property
    def texts(self) -> bool:
        """Whether content given as a text is written, and not only content given as parts."""
        return _PROBE in self._try([_user(_PROBE)])

    @functools.cached_property
    def system(self) -> bool:
        """Whether a system message is written."""
        return _PROBE in self._try([_system(_PROBE), _user("q")])

    @functools.cached_property
    def system_anywhere(self) -> bool:
        """Whether more than one system message, and one after the first turn, are written."""
        text = self._try([_system("a"), _system(_PROBE), _user("q"), _assistant("b"), _system(_PROBE), _user("c")])
        return text.count(_PROBE) == 2

    @functools.cached_property
    def developer(self) -> bool:
        """Whether it knows developer messages."""
        message = {"role": "developer", "content": _PROBE}
        return self.mentions("developer") and _PROBE in self._try([message, _user("q")])

    @functools.cached_property
    def argument_style(self) -> str:
        """How arguments of tool calls must reach it: "object" (mappings) or "text" (JSON texts)."""
        good = json.dumps({_PROBE: 1})
        as_object, as_text = self._called({_PROBE: 1}, ""), self._called(good, "")
        if good in as_text and (not as_object or str({_PROBE: 1}) in as_object):
            return "text"
        return "object"

    @functools.cached_property
    def call_content(self) -> str | None:
        """The content of a message that is calls only: None, or "" where the template needs a text."""
        as_none, as_text = self._called(self._arguments, None), self._called(self._arguments, "")
        return None if _PROBE in as_none and as_none.count("None") == as_text.count("None") else ""

    @functools.cached_property
    def calls(self) -> bool:
        """Whether calls of earlier answers are written."""
        return _PROBE in self._called(self._arguments, "")

    @functools.cached_property
    def parallel_calls(self) -> bool:
        """Whether several calls of one answer are written."""
        ids = ("abcdefghi", "bcdefghij")
        calls = [{"id": i, "type": "function", "function": {"name": i, "arguments": self._arguments}} for i in ids]
        results = [{"role": "tool", "tool_call_id": i, "name": i, "content": "1"} for i in ids]
        answer = {"role": "assistant", "content": self.call_content, "tool_calls": calls}
        return self._try([_user("q"), answer, *results]).count(_PROBE) == len(ids)

    @property
    def _arguments(self) -> object:
        return {_PROBE: 1} if self.argument_style == "object" else json.dumps({_PROBE: 1})

    @functools.cached_property
    def long_call_ids(self) -> bool:
        """Whether ids of calls may have any form; Mistral's are nine letters or digits."""
        return bool(self._called(self._arguments, "", "call_abcdefghijkl")) or not self._called(self._arguments, "")

    def _called(self, arguments: object, content: str | None, call_id: str = "abcdefghi") -> str:
        call = {"id": call_id, "type": "function", "function": {"name": "probe", "arguments": arguments}}
        answer = {"role": "assistant", "content": content, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": call_id, "name": "probe", "content": "1"}
        whole = [_user("q"), answer, result]
        return self._try(whole) if self._answers else self._try(whole[:2])

    @functools.cached_property
    def _answers(self) -> bool:
        """Whether a conversation with a result of a tool is written at all."""
        result = {"role": "tool", "tool_call_id": "abcdefghi", "name": "probe", "content": "1"}
        calls = [
            {"id": "abcdefghi", "type": "function", "function": {"name": "probe", "arguments": arguments}}
            for arguments in ({_PROBE: 1}, json.dumps({_PROBE: 1}))
        ]
        return any(
            self._try([_user("q"), {"role": "assistant", "content": "", "tool_calls": [call]}, result])
            for call in calls
        )


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def _assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}
