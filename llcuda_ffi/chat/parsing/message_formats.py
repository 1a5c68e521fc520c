"""How models write answers as messages or sections of their own: one generator for each way (see reader.py).

These say of every part what it is, so they are read also where a request has no tools.
"""

from __future__ import annotations

import html
import json
import re

from .deltas import Output
from .reader import Reader, Reading
from .tag_formats import Tagged, as_json


def harmony(r: Reader, o: Output) -> Reading[None]:
    """gpt-oss: messages of channels; analysis is reasoning, a recipient functions.x makes a call."""
    ends = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
    # the prompt ended with <|start|>assistant; what comes without a header is content
    if not (yield from r.char()) or not (yield from r.comes(("<|channel|>", " to=", "<|start|>", "<|message|>"))):
        yield from r.until(ends, o.content)
    while True:
        header, found = yield from r.text_until("<|message|>")
        if not found:
            return
        channel = re.search(r"<\|channel\|>\s*(\w+)", header)
        recipient = re.search(r"to=functions\.([\w.:-]+)", header)
        emit = o.content
        if recipient:
            o.call(recipient.group(1))
            emit = o.arguments
        elif channel and channel.group(1) == "analysis":
            o.part()
            emit = o.reasoning
        if not (yield from r.until(ends, emit)):
            return
        o.part()


def solar(r: Reader, o: Output) -> Reading[None]:
    """Solar: <|begin|>assistant and <|think|>, <|content|> or <|tool_calls|>, each to its end."""
    heads = ("<|think|>", "<|content|>", "<|tool_calls|>")
    call, name_mark, args_mark = "<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>"
    # the prompt ended with <|begin|>assistant
    while marker := (yield from r.until((*heads, call, "<|begin|>", "<|end|>", "<|calls|>"), o.content)):
        if marker == "<|begin|>":
            _, marker = yield from r.text_until(*heads)
        o.part()
        if marker == "<|think|>":
            yield from r.until(("<|end|>",), o.reasoning)
        elif marker == call:
            call_id, _ = yield from r.text_until(name_mark)
            name, found = yield from r.text_until(args_mark)
            if not found:
                return
            o.call(name.strip(), call_id.strip())
            yield from r.value(o.arguments)
            yield from r.text_until("<|tool_call:end|>")
        o.part()


_OPEN, _CLOSE, _SEP = "<|open|>", "<|close|>", "<|sep|>"


def kimi_k3(r: Reader, o: Output) -> Reading[None]:
    """Kimi K3: <|open|>response<|sep|>…<|close|>response<|sep|>, calls as <|open|>call tool="name"<|sep|>."""
    while marker := (yield from r.until((_OPEN, _CLOSE), o.content)):
        tag, found = yield from r.text_until(_SEP)
        if not found:
            return
        o.part()
        if marker == _CLOSE:
            continue
        if tag.startswith("think"):
            yield from r.until((f"{_CLOSE}think{_SEP}",), o.reasoning)
        elif tag.startswith("call"):
            o.call(_attribute(tag, "tool"))
            yield from _k3_arguments(r, o)
        o.part()


def _k3_arguments(r: Reader, o: Output) -> Reading[None]:
    some = False
    while True:
        _, marker = yield from r.text_until(_OPEN, _CLOSE)
        tag, found = yield from r.text_until(_SEP)
        if not found:
            return
        if marker == _CLOSE:
            o.arguments("}" if some else "{}")
            return
        if tag.startswith("json"):
            yield from r.value(o.arguments)
            yield from r.text_until(f"{_CLOSE}call{_SEP}")
            return
        value, found = yield from r.text_until(f"{_CLOSE}argument{_SEP}")
        if not found:
            return
        text = json.dumps(value, ensure_ascii=False) if _attribute(tag, "type") == "string" else as_json(value)
        key = json.dumps(_attribute(tag, "key"), ensure_ascii=False)
        o.arguments(f"{', ' if some else '{'}{key}: {text}")
        some = True


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf'\b{name}="([^"]*)"', tag)
    return html.unescape(found.group(1)) if found else ""


def recipients(r: Reader, o: Output) -> Reading[None]:
    """Functionary v3.2: >>>all and a text, >>>name and JSON; the prompt ended with the first >>>."""
    names = {f"{name}\n": name for name in ("all", *o.schemas)}
    others = {f">>>{line}": name for line, name in names.items()}
    r.start_record()
    yield from r.literal(">>>")
    to = "all"
    for line, name in names.items():
        if (yield from r.literal(line)):
            to = name
            r.stop_record()
            break
    else:
        o.content(r.unless_cut(r.stop_record()))
    while True:
        if to != "all":
            o.call(to)
            yield from r.value(o.arguments)
            o.part()
        marker = yield from r.until(tuple(others), o.content)
        if not marker:
            return
        o.part()
        to = others[marker]


_ATEM = Tagged(
    "<atem:function_calls>", "</atem:function_calls>", '<atem:invoke name="', '">', '<atem:parameter name="', '">',
    "", "</atem:parameter>", "</atem:invoke>",
)  # fmt: skip


def glimmer(r: Reader, o: Output) -> Reading[None]:
    """Muse Glimmer: messages to=self (reasoning), to=user and to=name (calls in tags)."""
    ends = ("<|eom|>", "<|eot|>", "<|start|>")
    # the prompt ended with <|start|>assistant; what comes without a header is content
    if not (yield from r.comes((" to=", "<|start|>", "<|message|>"))):
        yield from r.until(ends, o.content)
    while True:
        header, found = yield from r.text_until("<|message|>")
        if not found:
            return
        o.part()
        if " to=self" in header:
            marker = yield from r.until(ends, o.reasoning)
        else:
            while (marker := (yield from r.until((*ends, _ATEM.begin, _ATEM.call), o.content))) not in ends and marker:
                if marker == _ATEM.call:
                    yield from _ATEM.calls(r, o)
                o.part()
        if not marker:
            return
        o.part()
