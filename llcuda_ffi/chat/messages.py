"""Conversations in OpenAI's shapes, checked and brought to what chat templates read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InvalidRequest

Message = Mapping[str, Any]

# marks a text part as the place of an image or a sound
MEDIUM = "medium"

# names under which a message's reasoning is passed; templates read the first, those of gpt-oss the second
_REASONING = ("reasoning_content", "thinking", "reasoning")

_MAX_DEPTH = 64
_MOST_BITS = 8192  # Python writes no integer of over 4,300 digits


def plain(value: Any, what: str = "the value", depth: int = 0) -> Any:
    """`value` as plain JSON: templates see no object of ours, only copies without methods.

    Raises:
        InvalidRequest: something that JSON cannot say, or nested over 64 deep.
    """
    if depth > _MAX_DEPTH:
        raise InvalidRequest(f"{what} is nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(str.__str__(value))
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise InvalidRequest(f"{what} holds an integer of {value.bit_length()} bits: give a text")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_text(str(k)): plain(v, what, depth + 1) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(v, what, depth + 1) for v in value]
    as_dict = getattr(value, "to_dict", None)
    if callable(as_dict) and not isinstance(value, type):  # a ChatMessage, for one
        return plain(as_dict(), what, depth + 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), what, depth + 1) for f in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return plain(dump(), what, depth + 1)
    raise InvalidRequest(f"{what} holds a {type(value).__name__}, which JSON has no form for")


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates have no UTF-8
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def normalize(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as templates expect it.

    Keys whose value is None are dropped, a message's reasoning is given under each name that templates use.

    Raises:
        InvalidRequest: no message, one that is no mapping, without a role, or with content of a wrong shape.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise InvalidRequest("the conversation is empty: give at least one message")
    return [_message(message, i) for i, message in enumerate(messages)]


def _message(message: Message, i: int) -> dict[str, Any]:
    what = f"messages[{i}]"
    out = plain(message, what)
    if not isinstance(out, dict):
        raise InvalidRequest(f"{what} must be a mapping with a 'role', not {type(message).__name__}")
    out = {k: v for k, v in out.items() if v is not None}
    role = out.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"{what} has no 'role': it takes 'system', 'user', 'assistant' or 'tool'")
    _check_content(out.get("content"), what)
    if isinstance(out.get("content"), list):
        out["content"] = [_plain_part(part) for part in out["content"]]
    _check_calls(out.get("tool_calls"), what)
    reasoning = next((out[k] for k in _REASONING if k in out), None)
    if reasoning is not None:
        out = {"thinking": reasoning, **out, "reasoning_content": reasoning}
    return out


def _check_content(content: Any, what: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidRequest(f"{what}['content'] must be a text or parts, not {type(content).__name__}")
    for j, part in enumerate(content):
        if not isinstance(part, dict) or "type" not in part:
            raise InvalidRequest(f"{what}['content'][{j}] must be a part like {{'type': 'text', 'text': …}}")
        if not isinstance(part["type"], str):
            raise InvalidRequest(f"{what}['content'][{j}] has a 'type' that is no text")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{what}['content'][{j}] is a text part without a 'text'")


def _plain_part(part: dict[str, Any]) -> dict[str, Any]:
    """A part of an earlier answer, or one of OpenAI's responses, as a text part."""
    name = _TEXT_PARTS.get(part["type"])
    return {"type": "text", "text": part[name]} if name is not None and isinstance(part.get(name), str) else part


_TEXT_PARTS = {"refusal": "refusal", "input_text": "text", "output_text": "text"}


def _check_calls(calls: Any, what: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise InvalidRequest(f"{what}['tool_calls'] must be a list")
    for j, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{what}['tool_calls'][{j}] has no 'function' with a 'name'")


def require_text(messages: Sequence[Message]) -> None:
    """Refuse parts that a text model cannot read.

    Raises:
        InvalidRequest: an image, audio or other part.
    """
    for i, message in enumerate(messages):
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] != "text":
                raise InvalidRequest(
                    f"messages[{i}]['content'][{j}] is of type {part['type']!r:.60}: only text is supported"
                )


# what clients of several providers write beside an answer that they send back; a template that reads one has it
_HINTS = ("prefix", "cache_control", "reasoning_details", "thinking_blocks", "provider_specific_fields")
# keys that OpenAI's messages and ours may have; what else a template reads is known by its text
_KEYS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "annotations", "audio", "function_call")
) | frozenset((*_REASONING, *_HINTS))
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
# of OpenAI's answers: nothing in them is for a prompt
_DROPPED = ("annotations", "audio")


def check_known(messages: Sequence[Mapping[str, Any]], mentions: Callable[[str], bool]) -> None:
    """Refuse roles and keys that nobody reads.

    Args:
        messages: as `normalize` gives them.
        mentions: whether the chat template names a role or a key.

    Raises:
        InvalidRequest: a role or a key is neither OpenAI's nor the template's.
    """
    for i, message in enumerate(messages):
        role = message["role"]
        if role not in _ROLES and not (role.isidentifier() and mentions(role)):
            raise InvalidRequest(
                f"messages[{i}] has the unknown role {role!r:.60}: it takes {', '.join(sorted(_ROLES))}"
            )
        for key in message.keys() - _KEYS:
            if not mentions(key):
                raise InvalidRequest(
                    f"messages[{i}] has the unknown key {key!r:.60}: the chat template does not read it"
                )
        if message.get("function_call"):
            raise InvalidRequest(f"messages[{i}]['function_call'] is OpenAI's older form: give 'tool_calls'")


def openai_forms(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with what OpenAI writes in several ways written in one.

    Text parts are joined by newlines, images and sounds to what stands beside them by nothing, as llama-server does; no
    content is an empty text; an empty list of calls is left out; arguments that are "" or null are {}.
    """
    out = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = _joined(content)
        made = {k: v for k, v in message.items() if k not in _DROPPED}
        made["content"] = content or made.pop("refusal", None) or ""
        calls = made.pop("tool_calls", None)
        if calls:
            made["tool_calls"] = [_with_arguments(call) for call in calls]
        out.append(made)
    return out


def _joined(parts: Sequence[dict[str, Any]]) -> str:
    text, bare = "", True
    for part in parts:
        medium = part.get(MEDIUM) is True
        text += part["text"] if bare or medium else f"\n{part['text']}"
        bare = medium
    return text


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return {"type": "function", **call, "function": _with_arguments(call["function"])}
    arguments = call.get("arguments")
    empty = arguments is None or (isinstance(arguments, str) and arguments.strip() in ("", "null"))
    return {**call, "arguments": {}} if empty else call


def merge_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with system messages at the start of the user's next turn, for templates that refuse them."""
    out: list[dict[str, Any]] = []
    pending: list[str] = []
    for message in messages:
        if message["role"] == "system":
            pending.append(message["content"])
            continue
        if pending and message["role"] == "user":
            out.append({**message, "content": "\n\n".join([*pending, message["content"]])})
            pending = []
            continue
        out.append(message)
    if pending:
        out.append({"role": "user", "content": "\n\n".join(pending)})
    return out


def one_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with one system message, at its start, for templates that take no other."""
    n = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    head = {"role": "system", "content": "\n\n".join(message["content"] for message in messages[:n])}
    return [*([head] if n else []), *merge_system(messages[n:])]


def with_arguments(messages: Sequence[dict[str, Any]], style: str) -> list[dict[str, Any]]:
    """The conversation with the arguments of tool calls as templates want them.

    Args:
        style: "object" gives mappings, "text" gives JSON texts; what is not JSON stays as it is.
    """
    out = []
    for message in messages:
        calls = message.get("tool_calls")
        out.append({**message, "tool_calls": [_call_with(c, style) for c in calls]} if calls else message)
    return out


def one_call_each(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with parallel calls one after the other, each with its result, for templates that take one."""
    out: list[dict[str, Any]] = []
    results = [message for message in messages if message["role"] == "tool"]
    placed: set[int] = set()
    for message in messages:
        calls = message.get("tool_calls", ())
        if len(calls) <= 1:
            if id(message) not in placed:
                out.append(message)
            continue
        for i, call in enumerate(calls):
            out.append({**message, "content": "" if i else message["content"], "tool_calls": [call]})
            found = [r for r in results if r.get("tool_call_id") == call.get("id") and id(r) not in placed][:1]
            placed.update(map(id, found))
            out += found
    return out


def short_call_ids(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with nine digits for the id of each call."""
    ids: dict[str, str] = {}

    def short(given: Any) -> str:
        return ids.setdefault(str(given), f"{len(ids):09}")

    out = []
    for message in messages:
        made = dict(message)
        if made.get("tool_calls"):
            made["tool_calls"] = [{**call, "id": short(call.get("id"))} for call in made["tool_calls"]]
        if made["role"] == "tool":
            made["tool_call_id"] = short(made.get("tool_call_id"))
        out.append(made)
    return out


def _call_with(call: dict[str, Any], style: str) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _call_with(call["function"], style)}
    arguments = call.get("arguments")
    if style == "object" and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return call
        return {**call, "arguments": parsed} if isinstance(parsed, dict) else call
    if style == "text" and isinstance(arguments, dict):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return call
