"""The fields of tools: OpenAI's `tools` and `tool_choice` in their several forms, and the older `functions`."""

from __future__ import annotations

from typing import Any

from ..chat.tools.function_call import function_call
from ..errors import InvalidRequest
from .body import Fields

MOST_TOOLS = 128


def tool_options(fields: Fields) -> tuple[dict[str, Any], bool]:
    """`tools`, `tool_choice` and `parallel_tool_calls` for the chat layer; and whether the older names were used.

    Raises:
        InvalidRequest: a field is of a wrong form.
    """
    tools, functions = fields.objects("tools", MOST_TOOLS), fields.objects("functions", MOST_TOOLS)
    choice, call = fields.take("tool_choice"), fields.take("function_call")
    old = functions is not None
    for i, tool in enumerate(tools or ()):
        if tool.get("type", "function") != "function":
            raise InvalidRequest(f"tools[{i}] is of type {tool['type']!r:.60}: this server has functions only")
    if functions is not None:
        if tools is not None:
            raise InvalidRequest("functions is the older name of tools: send one of them")
        tools = [{"type": "function", "function": function} for function in functions]
    if call is not None:
        if choice is not None or not old:
            raise InvalidRequest("function_call goes with functions, tool_choice with tools")
        choice = {"type": "function", "function": call} if isinstance(call, dict) else call
    if choice == "any":  # Mistral's word
        choice = "required"
    tools, choice = allowed_tools(tools, "auto" if choice is None else choice)
    if choice == "required" and not tools:
        raise InvalidRequest(f"tool_choice={choice!r} needs tools")
    return {
        "tools": tools,
        "tool_choice": choice if tools else "none" if choice == "none" else choice,
        "parallel_tool_calls": fields.flag("parallel_tool_calls", not old),
    }, old


def allowed_tools(
    tools: list[dict[str, Any]] | None, choice: str | dict[str, Any]
) -> tuple[list[dict[str, Any]] | None, str | dict[str, Any]]:
    """`tool_choice: {"type": "allowed_tools", …}` carried out: the tools that it allows, and its mode."""
    if not isinstance(choice, (str, dict)):
        raise InvalidRequest(f"tool_choice must be a text or an object, not {choice!r:.60}")
    if isinstance(choice, str) or choice.get("type") != "allowed_tools":
        return tools, choice
    inner = choice.get("allowed_tools", choice)
    if not isinstance(inner, dict) or inner.get("mode") not in ("auto", "required"):
        raise InvalidRequest("tool_choice: allowed_tools needs a mode, 'auto' or 'required', and tools")
    given = inner.get("tools")
    names = [_name(tool) for tool in given] if isinstance(given, list) else []
    kept = [tool for tool in tools or () if _name(tool) in names]
    have = [_name(tool) for tool in kept]
    missing = [name for name in names if name not in have]
    if missing or not kept:
        raise InvalidRequest(f"tool_choice: no tool is called {missing[:3]!r:.100}")
    return kept, str(inner["mode"])


def _name(tool: Any) -> Any:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def as_function_call(message: dict[str, Any]) -> None:
    """Write the tool call of a message or delta under the older name, in place; it has one, others are left out."""
    call = function_call(message)
    if message.pop("tool_calls", None) and call:
        message["function_call"] = call
