"""How models write tool calls with tags or as code: one generator for each way (see reader.py)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .deltas import Output
from .reader import Marks, Reader, Reading

_CDATA = "<![CDATA["


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
        elif value.startswith("\n"):
            value = value[1:]
        return typed_value(value.removesuffix("\n"), schema)


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
                pieces[i] = re.sub(r"([{,]\s*)([^\s{},:\"\[\]]+)\s*:", r'\1"\2": ', piece)
        return "".join(pieces)


@dataclass(frozen=True)
class Pythonic(Marks):
    """[name(key="value", …), …] between markers."""

    open: str
    close: str

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        while (yield from r.until((self.open,), o.content)):
            text, found = yield from r.text_until(self.close)
            calls = _python_calls(text)
            if not calls:
                o.content(r.unless_cut(self.open + text + found))
                continue
            for name, arguments in calls:
                o.call(name)
                o.arguments(json.dumps(arguments, ensure_ascii=False))
            o.part()


def _python_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    if len(text) > 100_000:
        return []
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        calls = []
        for node in nodes:
            if not isinstance(node, ast.Call) or node.args:
                return []
            values = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            json.dumps(values)
            calls.append((ast.unparse(node.func), values))
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
    """A value written without quotes as JSON: a text where its schema says so, else as `as_json`."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string" or (isinstance(schema, Mapping) and kind is None and "enum" in schema):
        return json.dumps(text, ensure_ascii=False)
    return as_json(text)


def as_json(text: str) -> str:
    """A value as JSON: as it stands where it is JSON, else as a text."""
    stripped = text.strip()
    if _is_json(stripped):
        return stripped
    literal = {"True": "true", "False": "false", "None": "null"}.get(stripped)
    return literal or json.dumps(text, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
