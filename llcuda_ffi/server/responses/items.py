"""What a request to /v1/responses says, in the terms of a chat: items to messages, tools, the form of the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...errors import InvalidRequest
from ..body import Fields
from ..tool_fields import MOST_TOOLS, allowed_tools

Item = dict[str, Any]

MOST_ITEMS = 4096
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def input_items(value: Any) -> list[Item]:
    """The `input` of a request as items.

    Raises:
        InvalidRequest: no text and no list of objects.
    """
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidRequest(f"input must be a text or a list of items, not {value!r:.60}")
    if len(value) > MOST_ITEMS:
        raise InvalidRequest(f"input has {len(value)} items, more than {MOST_ITEMS}")
    return value


def messages_of(items: Sequence[Item], instructions: str | None = None) -> list[dict[str, Any]]:
    """A chat's messages. Reasoning, text and calls that follow each other are one message of the assistant.

    Searches of another provider are left out; calls of custom tools, whose input is a text, are calls with `input`.

    Raises:
        InvalidRequest: an item of a type that a text model cannot read.
    """
    out: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    answer: dict[str, Any] | None = None  # the assistant's message that is being put together
    for i, item in enumerate(items):
        kind, what = item.get("type", "message"), f"input[{i}]"
        if kind == "web_search_call":
            continue
        assistant = kind in ("reasoning", "function_call", "custom_tool_call") or item.get("role") == "assistant"
        if assistant:
            if answer is None or (kind == "message" and answer["content"] is not None):
                answer = {"role": "assistant", "content": None}
                out.append(answer)
        else:
            answer = None
        if kind == "message":
            content = _content(item.get("content"), what)
            if assistant and answer is not None:
                answer["content"] = _only_text(content, what)
            else:
                out.append({"role": item.get("role"), "content": content})
        elif kind == "reasoning" and answer is not None:
            parts = item.get("content") or item.get("summary") or []
            answer["reasoning_content"] = _joined(parts, what)
        elif kind in ("function_call", "custom_tool_call") and answer is not None:
            arguments = item.get("arguments") or "{}"
            if kind == "custom_tool_call":
                arguments = json.dumps({"input": item.get("input")}, ensure_ascii=False)
            function = {"name": item.get("name"), "arguments": arguments}
            call = {"id": item.get("call_id") or item.get("id"), "type": "function", "function": function}
            answer.setdefault("tool_calls", []).append(call)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            output = item.get("output")
            if not isinstance(output, (str, list)):
                output = json.dumps(output, ensure_ascii=False)
            content = _content(output, what, ".output")
            if isinstance(content, list) and all(part["type"] == "text" for part in content):
                content = _only_text(content, what)
            out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        else:
            raise InvalidRequest(
                f"{what} is of type {kind!r:.60}: messages, reasoning, function calls and their outputs are taken"
            )
    for message in out:
        if message["role"] == "assistant" and message["content"] is None and "tool_calls" not in message:
            message["content"] = ""
    return out


def _content(value: Any, what: str, field: str = ".content") -> str | list[dict[str, Any]]:
    """A message's content or a tool's output, its parts under the chat's names."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise InvalidRequest(f"{what}{field} must be a text or a list of parts, not {value!r:.60}")
    parts: list[dict[str, Any]] = []
    for part in value:
        if part.get("type") == "refusal" or part.get("type") in _TEXTS:
            text = part.get("refusal" if part["type"] == "refusal" else "text")
            if not isinstance(text, str):
                raise InvalidRequest(f"{what}{field}: a part of type {part['type']!r:.60} has no text: {text!r:.60}")
            parts.append({"type": "text", "text": text})
        elif part.get("type") == "input_image":
            if part.get("image_url") is None:
                raise InvalidRequest(
                    f"{what}.content: an input_image needs image_url, a data: URL: no files are kept here"
                )
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        elif part.get("type") == "input_audio":
            parts.append(part)
        else:
            raise InvalidRequest(f"{what}{field}: a part of type {part.get('type')!r:.60} cannot be read")
    return parts


def _only_text(content: str | list[dict[str, Any]], what: str) -> str:
    """Content, or its parts, as one text."""
    return content if isinstance(content, str) else _joined(content, what)


def _joined(value: Any, what: str) -> str:
    parts = value if isinstance(value, list) else [value]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in _TEXTS]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"{what}: only parts with text can be read")
    return "".join(texts)  # type: ignore[arg-type]


def tools_of(fields: Fields) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The chat layer's arguments about tools, the same fields as the answer repeats them, and functions' namespaces.

    Tools that a provider would run are left out where functions stand beside them, as coding agents send them always.

    Raises:
        InvalidRequest: there are only tools that are no functions: this server runs none of its own.
    """
    given = fields.objects("tools", MOST_TOOLS) or []
    given, namespaces = _functions(given)
    choice = fields.take("tool_choice", "auto")
    parallel = fields.flag("parallel_tool_calls", True)
    tools = []
    for tool in [one for shown in given for one in (shown["tools"] if shown["type"] == "namespace" else [shown])]:
        function = {k: v for k, v in tool.items() if k in ("name", "description", "parameters", "strict")}
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
    kept, chosen = allowed_tools(tools or None, choice)
    if isinstance(chosen, dict) and "name" in chosen:
        chosen = {"type": "function", "function": {"name": chosen["name"]}}
    options = {"tools": kept, "tool_choice": chosen, "parallel_tool_calls": parallel}
    return options, {"tools": given, "tool_choice": choice, "parallel_tool_calls": parallel}, namespaces


def _functions(tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The functions among tools, and groups of functions; the group of each function that has one."""
    kept: list[dict[str, Any]] = []
    namespaces: dict[str, str] = {}
    for tool in tools:
        inner = tool.get("tools")
        if tool.get("type") == "function":
            kept.append(tool)
        elif tool.get("type") == "namespace" and isinstance(inner, list):
            functions = [one for one in inner if isinstance(one, dict) and one.get("type") == "function"]
            namespaces |= {str(one.get("name")): str(tool.get("name")) for one in functions}
            kept.append({**tool, "tools": functions})
    if tools and not kept:
        raise InvalidRequest(
            f"tools[0] is of type {tools[0].get('type')!r:.60}: this server has only the functions that you give it"
        )
    return kept, namespaces


def response_format(fields: Fields) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The chat layer's response_format, and `text` as the answer repeats it."""
    text = Fields(fields.mapping("text"), fields.lenient)
    form = text.mapping("format") or {"type": "text"}
    verbosity = text.text("verbosity", "medium")
    text.end()
    shown = {"format": form, "verbosity": verbosity}
    if form.get("type") == "json_schema" and "json_schema" not in form:
        inner = {k: v for k, v in form.items() if k != "type"}
        return {"type": "json_schema", "json_schema": inner}, shown
    return form, shown
