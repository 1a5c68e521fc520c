"""Tools for models whose template knows none: described in the system text, calls and results written as texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_INTRODUCTION = (
    "You can call these functions:\n{tools}\n"
    'To call one, answer only with JSON of this form: {{"name": "function", "arguments": {{"argument": value}}}}'
)


def has_tools(chat: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation holds calls or their results."""
    return any(m.get("tool_calls") or m["role"] == "tool" for m in chat)


def rewrite(chat: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation without tool messages, with the tools described at its start."""
    out: list[dict[str, Any]] = []
    for message in chat:
        if message.get("tool_calls"):
            out.append(with_call_texts(message))
        elif message["role"] == "tool":
            text = f"Result{_of(message)}: {message['content']}"
            if out and out[-1].get("results"):  # results of parallel calls are one message
                out[-1]["content"] += "\n" + text
            else:
                out.append({"role": "user", "content": text, "results": True})
        else:
            out.append(message)
    out = [{k: v for k, v in m.items() if k != "results"} for m in out]
    if tools:
        lines = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools)
        text = _INTRODUCTION.format(tools=lines)
        if out[0]["role"] == "system":
            out[0] = {**out[0], "content": f"{out[0]['content']}\n\n{text}"}
        else:
            out.insert(0, {"role": "system", "content": text})
    return out


def with_call_texts(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its calls written in its content, as JSON."""
    if not message.get("tool_calls"):
        return message
    calls = [json.dumps(_call(c), ensure_ascii=False) for c in message["tool_calls"]]
    text = "\n".join([*([message["content"]] if message.get("content") else []), *calls])
    return {"role": "assistant", "content": text}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass  # the model's own broken JSON is shown as it wrote it
    return {"name": function["name"], "arguments": arguments}


def _of(message: Mapping[str, Any]) -> str:
    return f" of {message['name']}" if message.get("name") else ""
