"""How models write tool calls with tags or as code: one generator for each way (see reader.py)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from ...structured.schemas import type_names
from .deltas import Output
from .reader import Marks, Reader, Reading

_CDATA = "<![CDATA["
_LITERALS = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class Tagged(Marks):
    """Calls as tags, a parameter at a time: <function=name><parameter=key>value</parameter></function>.

    Attributes:
        begin: what opens the whole, "" where calls stand alone.
        end: what closes it.
        call, name_end: open a call; its name stands between them.
        key, key_end: open a parameter; its name stands between them.
        value: what opens the value after that, "" where it follows at once.
        value_end, call_end: close the value, the call.
        typed: the rest of the key's tag says whether the value is a text (string="true").
        padded: a value stands on lines of its own.
    """

    begin: str
    end: str
    call: str
    name_end: str
    key: str
    key_end: str
    value: str
    value_end: str
    call_end: str
    typed: bool = False
    padded: bool = False

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        opens: Sequence[str] = (self.begin, self.call) if self.begin and self.begin != self.call else (self.call,)
        while marker := (yield from r.until(opens, o.content)):
            if marker != self.call:
                o.part()
                yield from r.space()
                if not (yield from r.literal(self.call)):
                    continue
            yield from self.calls(r, o)
            o.part()

    def calls(self, r: Reader, o: Output) -> Reading[None]:
        """Read calls; what opens the first is consumed."""
        while True:
            ends = (self.name_end,) if self.name_end != "\n" else ("\n", self.key, self.call_end)
            name, found = yield from r.text_until(*ends)
            if not found:
                o.content(r.unless_cut(self.call + name))
                return
            o.call(name.strip())
            first = True
            while True:
                if found == self.call_end:
                    break
                if found != self.key:
                    _, found = yield from r.text_until(self.key, self.call_end)
                if found != self.key:
                    break
                key, found = yield from r.text_until(self.key_end)
                rest = ""
                if self.typed:
                    rest, found = yield from r.text_until(">")
                if self.value:
                    _, found = yield from r.text_until(self.value)
                value, found = yield from r.text_until(self.value_end)
                if not found:
                    return  # cut in the middle of a value
                written = self._value(_part(o.schemas.get(name.strip()), key.strip()), value, rest)
                o.arguments(("{" if first else ", ") + json.dumps(key.strip(), ensure_ascii=False) + ": " + written)
                first = False
                found = ""
            if found:
                o.arguments("{}" if first else "}")
            yield from r.space()
            if (yield from r.literal(self.end)) or not (yield from r.literal(self.call)):
                return
            o.part()

    def _value(self, schema: Any, value: str, rest: str) -> str:
        """The value as JSON: as the tag or the tool's schema says, else JSON where it is JSON."""
        if self.typed:
            return json.dumps(value, ensure_ascii=False) if 'string="true"' in rest else as_json(value)
        if value.startswith(_CDATA):
            value = value.removeprefix(_CDATA).removesuffix("]]>")
        elif self.padded:
            value = value.removeprefix("\n").removesuffix("\n")
        elif len(value) > 1 and value[0] == value[-1] == "\n":  # on lines of its own all the same
            value = value[1:-1]
        return typed_value(value, schema)


@dataclass(frozen=True)
class Gemma(Marks):
    """Gemma's own: call:name{key:value,…} between markers, texts between quotes of their own."""

    open: str
    close: str
    quote: str

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        while (yield from r.until((self.open,), o.content)):
            text, found = yield from r.text_until(self.close)
            match = re.fullmatch(r"\s*(?:call:)?([\w.:-]+)\s*(\{.*\})\s*", text, re.DOTALL)
            arguments = self._json(match.group(2)) if match else ""
            if not match or (r.cut and not _is_json(arguments)):
                o.content(r.unless_cut(self.open + text + found))
                continue
            o.call(match.group(1))
            o.arguments(arguments)
            o.part()

    def _json(self, text: str) -> str:
        pieces = text.split(self.quote)
        for i, piece in enumerate(pieces):
            if i % 2:
                pieces[i] = json.dumps(piece, ensure_ascii=False)
            else:
                named = re.sub(r"([{,]\s*)([^\s{},:\"\[\]]+)\s*:", r'\1"\2": ', piece)
                pieces[i] = re.sub(r"([:,\[]\s*)(None|True|False)(?=\s*[,}\]])", _python_literal, named)
        return "".join(pieces)


def _python_literal(match: re.Match[str]) -> str:
    return match[1] + _LITERALS[match[2]]


@dataclass(frozen=True)
class Pythonic(Marks):
    """[name(key="value", …), …] between markers."""

    open: str
    close: str

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        while (yield from r.until((self.open,), o.content)):
            text, found = yield from r.text_until(self.close)
            names = tuple(o.schemas)
            calls = _python_calls(text, names) or _python_calls(text.replace("\n", "\\n"), names)
            if not calls:
                o.content(r.unless_cut(self.open + text + found))
                continue
            for name, arguments in calls:
                o.call(name)
                o.arguments(json.dumps(arguments, ensure_ascii=False))
            o.part()


def _python_calls(text: str, names: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The calls in a Python expression; `names` may be none of Python's."""
    if len(text) > 100_000:
        return []
    odd = {f"_odd_name_{i}_": name for i, name in enumerate(names) if not name.replace(".", "_").isidentifier()}
    for stand_in, name in odd.items():
        text = re.sub(rf"(^|[\[,]\s*){re.escape(name)}(?=\s*\()", rf"\g<1>{stand_in}", text)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        calls = []
        for node in nodes:
            if not isinstance(node, ast.Call) or node.args:
                return []
            values = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            json.dumps(values, allow_nan=False)
            called = ast.unparse(node.func)
            calls.append((odd.get(called, called), values))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []
    return calls


_MINIMAX = "]<]minimax[>["
_MOST_DEPTH = 64


def minimax_m3(r: Reader, o: Output) -> Reading[None]:
    """MiniMax M3: <invoke name="…"> and a tag for each argument, nested for objects, <item> for lists; before
    every tag stands a mark.
    """
    invoke, over = f'{_MINIMAX}<invoke name="', f"{_MINIMAX}</tool_call>"
    while (yield from r.until((f"{_MINIMAX}<tool_call>",), o.content)):
        o.part()
        while True:
            _, marker = yield from r.text_until(invoke, over)
            if marker != invoke:
                break
            name, found = yield from r.text_until('">')
            if not found:
                return
            o.call(name.strip())
            if not (yield from _members(r, o, o.schemas.get(name.strip()))):
                return
        o.part()


def _members(r: Reader, o: Output, schema: Any) -> Reading[bool]:
    """A call's arguments; False where they do not end."""
    some = False
    while True:
        _, marker = yield from r.text_until(f"{_MINIMAX}</", f"{_MINIMAX}<")
        key, found = yield from r.text_until(">")
        if not found:
            return False
        if marker.endswith("/"):
            o.arguments("}" if some else "{}")
            return True
        value = yield from _element(r, _part(schema, key), 0)
        if value is None:
            return False
        o.arguments(f"{', ' if some else '{'}{json.dumps(key, ensure_ascii=False)}: {value}")
        some = True


def _element(r: Reader, schema: Any, depth: int) -> Reading[str | None]:
    """An element up to its end, as JSON; None where it does not end."""
    keys, values = [], []
    while True:
        text, marker = yield from r.text_until(f"{_MINIMAX}</", f"{_MINIMAX}<")
        key, found = yield from r.text_until(">")
        if not found or depth > _MOST_DEPTH:
            return None
        if marker.endswith("/"):
            break
        value = yield from _element(r, _part(schema, key), depth + 1)
        if value is None:
            return None
        keys.append(key)
        values.append(value)
    if not keys:
        return typed_value(text, schema)
    if set(keys) == {"item"} and not (isinstance(schema, Mapping) and schema.get("type") == "object"):
        return f"[{', '.join(values)}]"
    members = (f"{json.dumps(k, ensure_ascii=False)}: {v}" for k, v in zip(keys, values, strict=True))
    return f"{{{', '.join(members)}}}"


def _part(schema: Any, key: str) -> Any:
    """The schema of a property, or of a list's items."""
    if not isinstance(schema, Mapping):
        return {}
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    return schema.get("items", {}) if key == "item" else {}


def typed_value(text: str, schema: Any) -> str:
    """A value written without quotes as JSON: a text where its schema takes texts and not what else it could be."""
    kinds, found = _kinds(schema), as_json(text)
    kind = _KINDS[type(json.loads(found))]
    if "string" in kinds:
        return found if kind in kinds - {"string"} else json.dumps(text, ensure_ascii=False)
    if kind == "string" and kinds & {"array", "object"}:  # as Python writes it, or nothing
        return _python_value(text, kinds) or found
    return found


def _python_value(text: str, kinds: Set[str]) -> str:
    if not text.strip():
        return "[]" if "array" in kinds else "{}"
    try:
        value = ast.literal_eval(text.strip()) if len(text) <= 100_000 else None
        return json.dumps(value, ensure_ascii=False, allow_nan=False) if isinstance(value, (list, dict)) else ""
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ""


_KINDS: dict[type, str] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
    list: "array",
    dict: "object",
}


def _kinds(schema: Any) -> set[str]:
    """The types that a schema takes, integers as numbers; none where it does not say."""
    if not isinstance(schema, Mapping):
        return set()
    kinds, values = type_names(schema.get("type")), schema.get("enum")
    if not kinds and isinstance(values, list):
        kinds = {_KINDS.get(type(value), "") for value in values}
    for key in ("anyOf", "oneOf"):
        for part in schema[key] if isinstance(schema.get(key), list) else ():
            kinds |= _kinds(part)
    if schema.get("nullable") is True:
        kinds.add("null")
    return {"number" if kind == "integer" else kind for kind in kinds}


def as_json(text: str) -> str:
    """A value as JSON: as it stands where it is JSON, else as a text."""
    stripped = text.strip()
    if _is_json(stripped):
        return stripped
    return _LITERALS.get(stripped) or json.dumps(text, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
