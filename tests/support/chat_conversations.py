"""Conversations that chat templates are tried with, and the upstream templates themselves."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place <now>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": ["integer", "null"]},
            },
            "required": ["city"],
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


def _call(name: str, arguments: Any, number: int = 1) -> dict[str, Any]:
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


_SYSTEM = {"role": "system", "content": "You are terse."}
_ASK = {"role": "user", "content": "Wie ist das Wetter in Zürich? <b>&'\"</b> 🌦"}
_CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [_call("get_weather", {"city": "Zürich", "days": 2})],
}
_RESULT = {
    "role": "tool",
    "tool_call_id": "call00001",
    "name": "get_weather",
    "content": '{"temperature": 7}',
}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "single": {"messages": [_ASK]},
    "system": {"messages": [_SYSTEM, _ASK]},
    "multi": {
        "messages": [
            _SYSTEM,
            {"role": "user", "content": " Hi! "},
            {"role": "assistant", "content": "Hello.\nHow can I help?\n"},
            {"role": "user", "content": "Count to three."},
            {"role": "assistant", "content": "1 2 3"},
            {"role": "user", "content": "Thanks"},
        ]
    },
    "no alternation": {"messages": [_ASK, _ASK]},
    "tools": {"messages": [_SYSTEM, _ASK], "tools": [WEATHER, ADD]},
    "result": {"messages": [_SYSTEM, _ASK, _CALLS, _RESULT], "tools": [WEATHER, ADD]},
    "answered": {
        "messages": [
            _ASK,
            _CALLS,
            _RESULT,
            {"role": "assistant", "content": "7 °C."},
            {"role": "user", "content": "And now?"},
        ],
        "tools": [WEATHER],
    },
    "parallel": {
        "messages": [
            _ASK,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [_call("get_weather", {"city": "Zürich"}), _call("add", {"a": 1, "b": 2.5}, 2)],
            },
            _RESULT,
            {"role": "tool", "tool_call_id": "call00002", "name": "add", "content": "3.5"},
        ],
        "tools": [WEATHER, ADD],
    },
    "text arguments": {
        "messages": [
            _ASK,
            {"role": "assistant", "content": "", "tool_calls": [_call("add", '{"a": 1, "b": 2}')]},
        ],
        "tools": [ADD],
    },
    "reasoning": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4", "reasoning_content": "Two and two.\nFour."},
            {"role": "user", "content": "Sure?"},
        ]
    },
    "think in text": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"},
            {"role": "user", "content": "Sure?"},
        ]
    },
    "no thinking": {"messages": [_ASK], "enable_thinking": False},
    "parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    },
    "unknown role": {"messages": [_ASK, {"role": "narrator", "content": "It rains."}]},
    "continued": {
        "messages": [_ASK, {"role": "assistant", "content": "It is "}],
        "continue_final_message": True,
    },
}


def cases() -> list[tuple[str, dict[str, Any]]]:
    """Each conversation with and without the opening of the answer."""
    out = []
    for name, settings in CONVERSATIONS.items():
        out.append((name, settings))
        if "continue_final_message" not in settings:
            out.append((f"{name} +", {**settings, "add_generation_prompt": True}))
    return out


def without_dates(source: str, text: str) -> str:
    """`text` with the dates that `source` writes by strftime_now replaced by their formats."""
    for form in re.findall(r"strftime_now\(\s*[\"']([^\"']+)", source):
        text = text.replace(datetime.now().strftime(form), form)
    return text


def upstream_templates(sdist: Path) -> dict[str, str]:
    """Name → source of the chat templates that llama.cpp keeps for its own tests."""
    folder = sdist / "vendor" / "llama.cpp" / "models" / "templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
