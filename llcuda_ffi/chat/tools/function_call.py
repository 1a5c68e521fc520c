"""The older form of tool calls: `function_call` of a message or delta, and the role "function"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_tool_calls(messages: Sequence[Any]) -> Any:
    """A conversation with the older `function_call` and role "function" written as tool calls."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        return messages
    out: list[Any] = []
    last = ""
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            out.append(message)
            continue
        changed = dict(message)
        call = changed.pop("function_call", None)
        if isinstance(call, Mapping) and not changed.get("tool_calls"):
            last = f"call_{i}"
            changed["tool_calls"] = [{"id": last, "type": "function", "function": dict(call)}]
        elif message.get("role") == "function":
            changed |= {"role": "tool", "tool_call_id": last}
        out.append(changed)
    return out


def function_call(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first tool call of a message, or a delta of it, under the older name: its function, without what is None."""
    calls = [call for call in message.get("tool_calls") or () if not call.get("index")]
    return {name: value for name, value in calls[0]["function"].items() if value is not None} if calls else None
