"""How models write tool calls as JSON: one generator for each way (see reader.py).

Text that turns out not to be a call is content, unless the answer was cut before that showed. A call whose name is
known stays one, even where the answer was cut.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from .deltas import Output
from .reader import Marks, Reader, Reading

_NAME_KEYS = ("name", "tool_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")
_WRAPPERS = ("tool_calls", "tool_call")
_KEYS = {*_NAME_KEYS, *_ARGUMENT_KEYS, *_WRAPPERS, "id", "tool_call_id", "type"}
_FENCE = re.compile(r"```[a-z_]*\s*")


def plain_text(r: Reader, o: Output) -> Reading[None]:
    """No calls."""
    yield from r.until((), o.content)


# --- JSON ---


def json_call(r: Reader, o: Output) -> Reading[bool]:
    """A call as a JSON object, begun as soon as its name is known; False where the object is none.

    Takes {"name", "arguments" | "parameters"} with an id and a type, also inside {"function": {…}} and
    {"tool_calls": […]}.
    """
    if not (yield from r.literal("{")):
        return False
    name, call_id, early, begun = "", None, "", False
    while True:
        yield from r.space()
        if (yield from r.literal("}")):
            break
        key = yield from _key(r)
        if key is None or key not in _KEYS:
            return begun
        yield from r.space()
        first = yield from r.char()
        if key in _WRAPPERS or (key == "function" and first == "{"):
            if begun or not (yield from json_calls(r, o)):
                return begun
            begun = True  # what stands inside is complete
        elif key in _ARGUMENT_KEYS and name and not begun:
            begun = True
            r.stop_record()
            o.call(name, call_id)
            yield from _arguments(r, o)
        else:
            text = yield from r.json_text()
            value = _loads(text)
            if key in _NAME_KEYS and isinstance(value, str) and not begun:
                name = value
                if not name or (o.names is not None and name not in o.names):
                    return False
            elif key in _ARGUMENT_KEYS and not begun:
                early = text
            elif key in ("id", "tool_call_id"):
                call_id = str(value)
        yield from r.space()
        if not (yield from r.literal(",")):
            if (yield from r.literal("}")):
                break
            return begun
    if begun:
        return True
    if not name:
        return False
    r.stop_record()
    o.call(name, call_id)
    o.arguments(_unquoted(early) if early not in ("", "null") else "{}")
    return True


def _key(r: Reader) -> Reading[str | None]:
    if (yield from r.char()) != '"':
        return None
    key = _loads((yield from r.json_text()))
    yield from r.space()
    if not isinstance(key, str) or not (yield from r.literal(":")):
        return None
    return key


def _arguments(r: Reader, o: Output) -> Reading[None]:
    yield from r.space()
    first = yield from r.char()
    if first == '"':  # JSON in a JSON text
        o.arguments(_unquoted((yield from r.json_text())))
    elif first == "n":
        text = yield from r.json_text()
        o.arguments("{}" if text == "null" else r.unless_cut(text))
    else:
        yield from r.value(o.arguments)


def _unquoted(text: str) -> str:
    value = _loads(text)
    return value if isinstance(value, str) else text


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_calls(r: Reader, o: Output) -> Reading[bool]:
    """A call, several of them one after the other, a list of them, or {"tool_calls": [ … ]}; False where it is none."""
    some = False
    while True:
        yield from r.space()
        first = yield from r.char()
        if first == "[":
            if some and (yield from r.comes(("[TOOL_CALLS]",))):  # Mistral's mark of more calls
                return some
            yield from r.literal("[")
            yield from r.space()
            if (yield from r.literal("]")):
                return some
            done = yield from json_calls(r, o)
            yield from r.space()
            yield from r.literal("]")
        elif first == "{":
            done = yield from json_call(r, o)
        else:
            return some
        if not done:
            return some
        some = True
        yield from r.space()
        if not (yield from r.literal(",")):
            yield from r.literal(";")


@dataclass(frozen=True)
class Marked(Marks):
    """JSON calls after a marker: <tool_call>{…}</tool_call>, [TOOL_CALLS][{…}] and the like."""

    open: str
    close: str = ""

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        while (yield from r.until((self.open,), o.content)):
            r.start_record()
            done = yield from json_calls(r, o)
            read = r.stop_record()
            if not done:
                o.content(r.unless_cut(self.open + read))
                continue
            yield from r.space()
            if self.close:
                yield from r.literal(self.close)
            o.part()


@dataclass(frozen=True)
class Bare(Marks):
    """The answer is a call, in JSON, perhaps after a marker or in a code fence; or it is content."""

    marker: str = ""

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        r.start_record()
        yield from r.space()
        fenced = (yield from r.char()) == "`" and (yield from r.pattern(_FENCE, 32))
        if not fenced and self.marker:
            yield from r.literal(self.marker)
        if (yield from r.char()) in ("{", "["):
            done = yield from json_calls(r, o)
        else:
            done = False
        read = r.stop_record()
        if not done:
            o.content(r.unless_cut(read))
        else:
            yield from r.space()
            if fenced:
                yield from r.literal("```")
        if self.marker:
            yield from Marked(self.marker)(r, o)
        else:
            yield from r.until((), o.content)


@dataclass(frozen=True)
class Named(Marks):
    """The name in a tag, the arguments as JSON after it: <function=name>{…}</function>."""

    open: str
    name_end: str
    close: str

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        while (yield from r.until((self.open,), o.content)):
            name, found = yield from r.text_until(self.name_end)
            if not found:
                o.content(r.unless_cut(self.open + name))
                return
            o.call(name.strip())
            yield from r.value(o.arguments)
            yield from r.space()
            yield from r.literal(self.close)
            o.part()


@dataclass(frozen=True)
class Keyed(Marks):
    """The name as the only key of an object: [{"name": {…}}, …] between markers."""

    open: str
    close: str

    def __call__(self, r: Reader, o: Output) -> Reading[None]:
        """Read an answer."""
        while (yield from r.until((self.open,), o.content)):
            r.start_record()
            yield from r.space()
            yield from r.literal("[")
            some = False
            while (yield from self._call(r, o)):
                some = True
            read = r.stop_record()
            if not some:
                o.content(r.unless_cut(self.open + read))
                continue
            yield from r.literal("]")
            yield from r.space()
            yield from r.literal(self.close)
            o.part()

    def _call(self, r: Reader, o: Output) -> Reading[bool]:
        yield from r.space()
        if not (yield from r.literal("{")):
            return False
        yield from r.space()
        name = yield from _key(r)
        if not name:
            return False
        r.stop_record()
        o.call(name)
        yield from _arguments(r, o)
        yield from r.space()
        yield from r.literal("}")
        yield from r.space()
        yield from r.literal(",")
        yield from r.space()
        return True


def mistral(r: Reader, o: Output) -> Reading[None]:
    """[TOOL_CALLS][{…}, {…}], and the later [TOOL_CALLS]name[CALL_ID]id[ARGS]{…}."""
    while (yield from r.until(("[TOOL_CALLS]",), o.content)):
        yield from r.space()
        if (yield from r.char()) in ("[", "{"):
            r.start_record()
            done = yield from json_calls(r, o)
            read = r.stop_record()
            if not done:
                o.content(r.unless_cut("[TOOL_CALLS]" + read))
            continue
        name, marker = yield from r.text_until("[CALL_ID]", "[ARGS]")
        call_id = None
        if marker == "[CALL_ID]":
            call_id, marker = yield from r.text_until("[ARGS]")
        if not marker:
            o.content(r.unless_cut("[TOOL_CALLS]" + name))
            return
        o.call(name.strip(), call_id)
        yield from r.value(o.arguments)
        o.part()


def deepseek(r: Reader, o: Output) -> Reading[None]:
    """V3 and R1 write function<sep>name and a fenced JSON, V3.1 name<sep>JSON."""
    begin, sep, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    first, last = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    while marker := (yield from r.until((first, begin), o.content)):
        if marker == first:
            o.part()
            continue
        name, found = yield from r.text_until(sep, end)
        if found != sep:
            continue
        if name.strip() == "function":
            name, found = yield from r.text_until("\n")
            if not found:
                return
            fenced = (yield from r.char()) == "`"
            if fenced and not (yield from r.pattern(_FENCE, 12)) and r.cut:
                o.call(name.strip())
                return
        o.call(name.strip())
        yield from r.value(o.arguments)
        yield from r.text_until(end, last)
        yield from r.space()
        yield from r.literal(last)
        o.part()


def kimi(r: Reader, o: Output) -> Reading[None]:
    """<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|> in a section."""
    first, begin = "<|tool_calls_section_begin|>", "<|tool_call_begin|>"
    while marker := (yield from r.until((first, begin), o.content)):
        if marker == first:
            o.part()
            continue
        call_id, found = yield from r.text_until("<|tool_call_argument_begin|>", "<|tool_call_end|>")
        if not found:
            return
        call_id = call_id.strip()
        o.call(call_id.rpartition(":")[0].removeprefix("functions.") or call_id, call_id)
        yield from r.value(o.arguments)
        yield from r.text_until("<|tool_call_end|>")
        yield from r.space()
        yield from r.literal("<|tool_calls_section_end|>")
        o.part()
