"""tool_choice "required" or a name: grammars under which an answer can only be calls that parse."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.model import Model
from ...errors import InvalidRequest
from ...params import shown
from ...structured.grammars import check_ends, check_patterns, guidance, json_grammar
from ...structured.guided import guide_of
from ...structured.schemas import COMBINING, close_objects, without_nullable
from ..opening import Opening

MOST_CALLS = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Shape:
    """How calls are written: begin, calls with `between`, end; each call is `call` with its NAME and ARGS."""

    call: str
    begin: str = ""
    between: str = ""
    end: str = ""
    single: bool = False


_NAMED = '{"name": "NAME", "arguments": ARGS}'
_SHAPES = {
    "hermes": _Shape(f"<tool_call>\n{_NAMED}\n</tool_call>", between="\n"),
    "llama3": _Shape('{"name": "NAME", "parameters": ARGS}', between="; "),
    "json": _Shape(_NAMED, between="; "),
    "mistral": _Shape(_NAMED, "[TOOL_CALLS][", ", ", "]"),
    "mistral-args": _Shape("[TOOL_CALLS]NAME[ARGS]ARGS"),
    "deepseek": _Shape(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGS\n```<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "\n",
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek-plain": _Shape(
        "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGS<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "",
        "<｜tool▁calls▁end｜>",
    ),
    "harmony": _Shape("<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGS", single=True),
    "granite": _Shape(_NAMED, "<|tool_call|>[", ", ", "]"),
    "nemotron": _Shape(_NAMED, "<TOOLCALL>[", ", ", "]</TOOLCALL>"),
    "command-r": _Shape(
        '{"tool_call_id": "0", "tool_name": "NAME", "parameters": ARGS}',
        "<|START_ACTION|>[",
        ", ",
        "]<|END_ACTION|>",
    ),
    "firefunction": _Shape(_NAMED, " functools[", ", ", "]"),
    "functionary": _Shape("<function=NAME>ARGS</function>"),
    "gigachat": _Shape(_NAMED, "<|function_call|>", single=True),
    "tool-calls": _Shape(_NAMED, "<tool_calls>[", ", ", "]</tool_calls>"),
    "solar": _Shape(
        "<|tool_call:begin|>ID<|tool_call:name|>NAME<|tool_call:args|>ARGS<|tool_call:end|>", "<|tool_calls|>", "", ""
    ),
    "apertus": _Shape('{"NAME": ARGS}', "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
    "functionary-v3.2": _Shape("NAME\nARGS", between=">>>"),
    "kimi-k3": _Shape(
        '<|open|>call tool="NAME" index="1"<|sep|>'
        '<|open|>json type="object"<|sep|>ARGS<|close|>json<|sep|><|close|>call<|sep|>',
        "<|open|>tools<|sep|>",
        "",
        "<|close|>tools<|sep|>",
    ),
    "kimi": _Shape(
        "<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>ARGS<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "",
        "<|tool_calls_section_end|>",
    ),
}


def chosen(choice: Any, names: Sequence[str]) -> tuple[str, str | None]:
    """tool_choice as ("auto" | "none" | "required", the function's name or None).

    Raises:
        InvalidRequest: another value, or no such function.
    """
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    elif choice in ("auto", "none", "required"):
        if choice == "required" and not names:
            raise InvalidRequest("tool_choice='required' needs tools")
        return choice, None
    else:
        name = choice
    if name not in names:
        raise InvalidRequest(
            f"tool_choice must be 'auto', 'none', 'required' or one of the tools "
            f"({', '.join(names) or 'there are none'}), not {shown(choice)}"
        )
    return "required", str(name)


def shape_of(format: str, template: str) -> tuple[str, str]:
    """The format that the parser must have for constrained calls, and the shape to constrain to.

    Formats with tags of their own are written in plain JSON when constrained.
    """
    if format == "mistral":
        return format, "mistral-args" if "[ARGS]" in template else "mistral"
    if format == "deepseek":
        return format, "deepseek" if "```json" in template else "deepseek-plain"
    return (format, format) if format in _SHAPES else ("json", "json")


def calls_grammar(
    shape_name: str,
    tools: Sequence[Mapping[str, Any]],
    literal: Callable[[str], str],
    *,
    parallel: bool,
    first: Opening,
) -> str:
    """A grammar in llguidance's Lark under which the answer is calls of `tools`.

    Args:
        literal: a text as Lark, control tokens as such.
        parallel: whether more than one call may come.
        first: what comes before the calls.
    """
    shape = _SHAPES[shape_name]
    rules, names = [], []
    for i, tool in enumerate(tools):
        function = tool["function"]
        before, _, after = shape.call.replace("NAME", function["name"]).rpartition("ARGS")
        names.append(f"call_{i}")
        rules.append(f"call_{i}: {literal(before)} args_{i}{_then(literal, after)}")
        rules.append(f"args_{i}: %json {json.dumps(_arguments_schema(function), ensure_ascii=False)}")
    more = f"({_then(literal, shape.between)} call){{0,{MOST_CALLS - 1}}}" if parallel and not shape.single else ""
    parts = [literal(shape.begin) if shape.begin else "", "call", more, literal(shape.end) if shape.end else ""]
    start = " ".join([*first.parts, *(part for part in parts if part)])
    return "\n".join([f"start: {start}", f"call: {' | '.join(names)}", *rules, *first.rules])


def check_tools(model: Model, tools: Sequence[Mapping[str, Any]]) -> None:
    """Log which keywords of the tools' parameters cannot be enforced: the rest of them is.

    Raises:
        InvalidRequest: the parameters of a tool cannot be had at all; the message names it.
    """
    guide = guide_of(model)
    for tool in tools:
        function = tool["function"]
        try:
            keywords = guide.unenforced(json_grammar(_arguments_schema(function)))
        except InvalidRequest as error:
            raise InvalidRequest(f"the parameters of {function['name']}(): {error}") from None
        if keywords:
            _log.warning("the arguments of %s() are not held to %s", function["name"], ", ".join(keywords))


def _arguments_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that a forced call follows. What llguidance does not know in it is left out (see `check_tools`)."""
    given = function.get("parameters") or {}
    declared: dict[str, Any] = {} if COMBINING & given.keys() else {"properties": {}}
    schema: dict[str, Any] = close_objects(without_nullable({"type": "object", **declared, **given}))
    check_ends(schema, f"the parameters of {function['name']}()")
    check_patterns(schema, f"the parameters of {function['name']}()")
    lenient: dict[str, Any] = guidance(schema | {"x-guidance": {"lenient": True}})
    return lenient


def _then(literal: Callable[[str], str], text: str) -> str:
    return f" {literal(text)}" if text else ""
