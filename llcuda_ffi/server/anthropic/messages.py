"""Anthropic's conversations in the terms of a chat: content blocks, tools, the choice among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...errors import InvalidRequest
from ..body import Fields
from ..tool_fields import MOST_TOOLS


def messages_of(fields: Fields) -> list[dict[str, Any]]:
    """`system` and `messages` as a chat's messages.

    Raises:
        InvalidRequest: a block that cannot be read, or one of a wrong shape.
    """
    system = fields.take("system")
    given = fields.objects("messages")
    if not given:
        raise InvalidRequest("messages must be a list of objects with 'role' and 'content', and not empty")
    out: list[dict[str, Any]] = []
    if system:
        out.append({"role": "system", "content": _text(system, "system")})
    for i, message in enumerate(given):
        role, content, what = message.get("role"), message.get("content"), f"messages[{i}]"
        if role not in ("user", "assistant", "system"):
            raise InvalidRequest(f"{what}: a role is 'user' or 'assistant', not {role!r:.60}")
        if isinstance(content, str):
            out.append({"role": role, "content": content})
        elif not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
            raise InvalidRequest(f"{what}.content must be a text or a list of blocks, not {content!r:.60}")
        elif role == "assistant":
            out.append(_assistant(content, what))
        else:
            out += _user(role, content, what)
    return out


def _assistant(blocks: Sequence[dict[str, Any]], what: str) -> dict[str, Any]:
    """The assistant's blocks as one message."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    thinking = ""
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            message["content"] += _string(block.get("text"), what)
        elif kind == "thinking":
            thinking += _string(block.get("thinking"), what)
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            call = {"id": block.get("id"), "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
        elif kind not in ("redacted_thinking", "server_tool_use") and not str(kind).endswith("_tool_result"):
            # those are of another provider, mostly encrypted: nobody here can read them
            raise InvalidRequest(f"{what}: a block of type {kind!r:.60} of the assistant cannot be read")
    if thinking:
        message["reasoning_content"] = thinking
    return message


def _user(role: str, blocks: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """The user's blocks: results of tools are messages of their own, before the text."""
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            content = _result(block.get("content") or "", what, "Error: " if block.get("is_error") else "")
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content})
        elif kind == "text":
            parts.append({"type": "text", "text": _string(block.get("text"), what)})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image(block.get("source"), what)}})
        elif kind == "document" and isinstance(block.get("source"), dict) and block["source"].get("type") == "text":
            parts.append({"type": "text", "text": _string(block["source"].get("data"), what)})
        elif kind == "document" and isinstance(block.get("source"), dict) and block["source"].get("type") == "content":
            parts.append({"type": "text", "text": _text(block["source"].get("content") or "", what)})
        elif kind == "search_result":
            head = [_string(block.get(name, ""), what) for name in ("title", "source")]
            parts.append({"type": "text", "text": "\n".join([*head, _text(block.get("content") or "", what)])})
        elif kind == "document":
            raise InvalidRequest(f"{what}: a document is read as text (source.type 'text'): send its text")
        else:
            raise InvalidRequest(f"{what}: a block of type {kind!r:.60} cannot be read")
    return [*results, {"role": role, "content": parts}] if parts else results


def _result(value: Any, what: str, before: str) -> str | list[dict[str, Any]]:
    """What a tool gave, after `before`: a text, or parts where there are images; names of tools are texts."""
    if not isinstance(value, list) or not all(isinstance(block, dict) for block in value):
        return before + _text(value, what)
    parts: list[dict[str, Any]] = []
    for block in value:
        kind = block.get("type")
        if kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image(block.get("source"), what)}})
        elif kind == "tool_reference":
            parts.append({"type": "text", "text": _string(block.get("tool_name"), what)})
        else:
            parts.append({"type": "text", "text": _text([block], what)})
    if all(part["type"] == "text" for part in parts):
        return before + "\n".join(part["text"] for part in parts)
    return [{"type": "text", "text": before}, *parts] if before else parts


def _image(source: Any, what: str) -> str:
    """The address of an image's source: a data: URL of its base64, or the url that it names."""
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "base64":
        media_type = _string(source.get("media_type", "image/png"), what)
        return f"data:{media_type.replace(',', '')};base64,{_string(source.get('data'), what)}"
    if kind == "url":
        return _string(source.get("url"), what)
    raise InvalidRequest(f"{what}: an image's source is of type base64 or url, not {kind!r:.60}")


def _text(value: Any, what: str) -> str:
    """A text, or blocks of text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(b, dict) and b.get("type") == "text" for b in value):
        raise InvalidRequest(f"{what} must be a text or blocks of text, not {value!r:.60}")
    return "\n".join(_string(block.get("text"), what) for block in value)


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{what}: a block's text must be a text, not {value!r:.60}")
    return value


def tools_of(fields: Fields) -> dict[str, Any]:
    """The chat layer's arguments about tools. Those that Anthropic's models know are left out beside others.

    Raises:
        InvalidRequest: there are only tools that Anthropic's models know, or one of them is to be called.
    """
    tools: list[dict[str, Any]] = []
    given = fields.objects("tools", MOST_TOOLS) or []
    own = [tool for tool in given if (tool.get("type") or "custom") == "custom"]
    if given and not own:
        raise InvalidRequest(
            f"tools[0] is of type {given[0]['type']!r:.60}, which Anthropic's models know: give a tool of your own, "
            "with an input_schema"
        )
    for tool in own:
        function: dict[str, Any] = {
            "name": tool.get("name"),
            "parameters": tool.get("input_schema") or {"type": "object"},
        }
        if tool.get("description"):
            function["description"] = tool["description"]
        tools.append({"type": "function", "function": function})
    choice = Fields(fields.mapping("tool_choice"), fields.lenient)
    kind = choice.text("type", "auto")
    name = choice.take("name")
    parallel = not choice.flag("disable_parallel_tool_use", False)
    choice.end()
    chosen: Any = {"auto": "auto", "any": "required", "none": "none"}.get(kind)
    if kind == "tool":
        chosen = {"type": "function", "function": {"name": name}}
    if chosen is None:
        raise InvalidRequest(f"tool_choice: a type is auto, any, tool or none, not {kind!r:.60}")
    if kind in ("any", "tool") and not tools:
        raise InvalidRequest(f"tool_choice of type {kind!r} needs tools")
    return {"tools": tools or None, "tool_choice": chosen, "parallel_tool_calls": parallel}
