"""How models write tool calls with tags or as code: one generator for each way (see reader.py)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .deltas import Output
from .reader import Reader, Reading


@dataclass(frozen=True)
class Tagged:
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

    @property
    def markers(self) -> tuple[str, ...]:
        """See Marked."""
        return tuple(m for m in (self.begin, self.end, self.call, self.call_end, self.key, self.value) if m)

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> _TaggedReader:
        """For these tools' parameters."""
        return _TaggedReader(self, tools)


class _TaggedReader:
    def __init__(self, form: Tagged, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self.form, self.tools = form, tools

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        form = self.form
        opens: Sequence[str] = (form.begin, form.call) if form.begin and form.begin != form.call else (form.call,)
        while marker := (yield from r.until(opens, o.content)):
            if marker != form.call:
                o.part()
                yield from r.space()
                if not (yield from r.literal(form.call)):
                    continue
            yield from self._calls(r, o)
            o.part()

    def _calls(self, r: Reader, o: Output) -> Reading[None]:
        form = self.form
        while True:
            ends = (form.name_end,) if form.name_end != "\n" else ("\n", form.key, form.call_end)
            name, found = yield from r.text_until(*ends)
            if not found:
                o.content(form.call + name)
                return
            o.call(name.strip())
            first = True
            while True:
                if found == form.call_end:
                    break
                if found != form.key:
                    _, found = yield from r.text_until(form.key, form.call_end)
                if found != form.key:
                    break
                key, found = yield from r.text_until(form.key_end)
                rest = ""
                if form.typed:
                    rest, found = yield from r.text_until(">")
                if form.value:
                    _, found = yield from r.text_until(form.value)
                value, found = yield from r.text_until(form.value_end)
                if not found:
                    return  # cut in the middle of a value
                written = self._value(name.strip(), key.strip(), value, rest)
                o.arguments(("{" if first else ", ") + json.dumps(key.strip(), ensure_ascii=False) + ": " + written)
                first = False
                found = ""
            if found:
                o.arguments("{}" if first else "}")
            yield from r.space()
            if (yield from r.literal(form.end)) or not (yield from r.literal(form.call)):
                return
            o.part()

    def _value(self, name: str, key: str, value: str, rest: str) -> str:
        """The value as JSON: as the tool's schema says, else JSON where it is JSON."""
        if self.form.typed:
            text = 'string="true"' in rest
        else:
            if value.startswith("\n"):
                value = value[1:]
            value = value.removesuffix("\n")
            schema = self.tools.get(name, {}).get("properties", {}).get(key, {})
            kind = schema.get("type") if isinstance(schema, Mapping) else None
            text = kind == "string" or (isinstance(schema, Mapping) and kind is None and "enum" in schema)
        if not text:
            stripped = value.strip()
            if _is_json(stripped):
                return stripped
            literal = {"True": "true", "False": "false", "None": "null"}.get(stripped)
            if literal:
                return literal
        return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Gemma:
    """Gemma's own: call:name{key:value,…} between markers, texts between quotes of their own."""

    open: str
    close: str
    quote: str

    @property
    def markers(self) -> tuple[str, ...]:
        """See Marked."""
        return (self.open, self.close, self.quote)

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        while (yield from r.until((self.open,), o.content)):
            text, found = yield from r.text_until(self.close)
            match = re.fullmatch(r"\s*(?:call:)?([\w.:-]+)\s*(\{.*\})\s*", text, re.DOTALL)
            if not match:
                o.content(self.open + text + found)
                continue
            o.call(match.group(1))
            o.arguments(self._json(match.group(2)))
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
class Pythonic:
    """[name(key="value", …), …] between markers."""

    open: str
    close: str

    @property
    def markers(self) -> tuple[str, ...]:
        """See Marked."""
        return (self.open, self.close)

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        while (yield from r.until((self.open,), o.content)):
            text, found = yield from r.text_until(self.close)
            calls = _python_calls(text)
            if not calls:
                o.content(self.open + text + found)
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


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
