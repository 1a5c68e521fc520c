"""Tool calls and reasoning in answers: each format, whole and cut at every place."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llcuda_ffi.chat.parsing.deltas import Parsed
from llcuda_ffi.chat.parsing.parser import FORMATS, AnswerParser, detect_format, detect_reasoning
from llcuda_ffi.chat.parsing.tag_formats import typed_value
from llcuda_ffi.chat.template.template import ChatTemplate
from llcuda_ffi.errors import InvalidRequest

from ..support.chat_conversations import ADD, VARIABLES, WEATHER, upstream_templates
from ..support.upstream_sdist import upstream_sdist

TOOLS = [WEATHER, ADD]
THINK = ("<think>", "</think>")
ZURICH = ("get_weather", {"city": "Zürich"})
SUM = ("add", {"a": 1, "b": -2.5})

# what models write in each format, and what must come out
ANSWERS = [
    (row["format"], row["text"], row["content"], [tuple(call) for call in row["calls"]])
    for row in json.loads((Path(__file__).parents[1] / "data" / "tool_answers.json").read_text("utf-8"))
]


def whole(format: str, text: str, **more: Any) -> Parsed:
    """The answer in one piece."""
    return AnswerParser(format, tools=TOOLS, **more).parse(text)


def pieces(format: str, parts: list[str], **more: Any) -> Parsed:
    """The answer as a stream."""
    parser = AnswerParser(format, tools=TOOLS, **more)
    together = Parsed.of([*(delta for part in parts for delta in parser.feed(part)), *parser.close()])
    assert together == parser.parsed
    return together


@pytest.mark.parametrize(("format", "text", "content", "calls"), ANSWERS)
def test_answers(format: str, text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    """Content and calls come out, whole, cut in two at every place, and character by character."""
    parsed = whole(format, text)
    assert parsed.content == content
    assert [(c.name, json.loads(c.arguments)) for c in parsed.tool_calls] == calls
    for at in range(len(text) + 1):
        assert pieces(format, [text[:at], text[at:]]) == parsed
    assert pieces(format, list(text)) == parsed


@pytest.mark.parametrize(("format", "text", "content", "calls"), ANSWERS)
def test_answers_that_end_early(format: str, text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    """An answer that max_tokens cut anywhere gives the same whole and in characters; a call it began keeps
    its name.
    """
    names = [name for name, _ in calls]
    for end in range(len(text)):
        parsed = whole(format, text[:end])
        assert pieces(format, list(text[:end])) == parsed
        assert [c.name for c in parsed.tool_calls] == names[: len(parsed.tool_calls)]


@pytest.mark.parametrize("format", ["hermes", "llama3", "none", "json", "qwen-xml"])
@pytest.mark.parametrize(
    ("text", "prompt", "reasoning", "content"),
    [
        ("<think>\nTwo and two.\n</think>\n\n4", "", "Two and two.", "4"),
        ("\n\n<think>\n\n</think>\n\n4", "", "", "4"),
        ("Two and two.\n</think>\n\n4", "<|im_start|>assistant\n<think>\n", "Two and two.", "4"),
        ("<think>never ends", "", "never ends", ""),
        ("4 <think>x</think>", "", "", "4 <think>x</think>"),
        ("  4", "<think>\n\n</think>\n\n", "", "  4"),
    ],
)
def test_reasoning(format: str, text: str, prompt: str, reasoning: str, content: str) -> None:
    """Reasoning at the start of an answer is told from content, also where the prompt opened it."""
    parsed = whole(format, text, reasoning=THINK, prompt=prompt)
    assert (parsed.reasoning, parsed.content, parsed.tool_calls) == (reasoning, content, [])
    for at in range(len(text) + 1):
        assert pieces(format, [text[:at], text[at:]], reasoning=THINK, prompt=prompt) == parsed


MARKERS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "```json\n",
    ),
    *("<function=", "<parameter=", ">", "<arg_key>", "</arg_key>", "<|channel|>", "<|message|>", "<|call|>"),
    *("<|tool_call>", "<tool_call|>", "call:f{", '"name"', '"arguments"', '"add"', '"parameters": {'),
)
ALPHABET = sorted({*MARKERS, *(marker[:4] for marker in MARKERS), *'{}[]":,\\ \nx1'})


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.sampled_from(ALPHABET), max_size=25).map("".join),
    st.data(),
    st.sampled_from([None, THINK]),
)
def test_any_text_in_any_pieces(format: str, text: str, data: st.DataObject, reasoning: Any) -> None:
    """Whatever a model writes, and however the stream is cut: no exception, and the same result as whole."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = whole(format, text, reasoning=reasoning)
    assert pieces(format, parts, reasoning=reasoning) == expected
    assert pieces(format, list(text), reasoning=reasoning) == expected


def test_streaming_begins_early() -> None:
    """Content, a call's name and its arguments are given out while they arrive, not at the end."""
    parser = AnswerParser("hermes", tools=TOOLS)
    assert [d.content for d in parser.feed("Let me look")] == ["Let me look"]
    assert parser.feed(' <tool_call>{"name": "add", "arg') == []
    first = parser.feed('uments": {"a": 1')
    assert first[0].call is not None
    assert first[0].call.name == "add"
    assert "".join(d.call.arguments for d in first if d.call) == '{"a": 1'
    more = parser.feed(', "b": 2}')
    assert "".join(d.call.arguments for d in more if d.call) == ', "b": 2}'


def test_upstream_templates_round_trip() -> None:
    """Calls that a real template writes into a conversation are read back by the format detected for it.

    Every template of a format that is told by signs and that writes calls takes part.
    """
    ask = {"role": "user", "content": "Weather?"}
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Zürich"}},
    }
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    tried = {}
    for name, source in upstream_templates(upstream_sdist()).items():
        format = detect_format(source)
        template = ChatTemplate(source, VARIABLES)
        if format == "json" or not (template.capabilities.tools and template.capabilities.calls):
            continue
        try:
            text = template.prompt([ask, answer], tools=[ADD])
            # a generation prompt may open reasoning, which the finished answer does not hold
            asked = [template.prompt([ask], tools=[ADD], add_generation_prompt=g) for g in (False, True)]
        except InvalidRequest:
            continue
        tried[name] = []
        for prompt in asked:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, text, strict=False)))
            answered = text[same:]
            parser = AnswerParser(format, tools=TOOLS, reasoning=detect_reasoning(source), prompt=prompt)
            calls = parser.parse(answered).tool_calls
            tried[name] = tried[name] or [(c.name, json.loads(c.arguments)) for c in calls]
        if "get_weather" not in text:
            del tried[name]
    assert len(tried) >= 46
    assert {name: calls for name, calls in tried.items() if calls != [ZURICH]} == {}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "string"}, "5"),
        ("5", {"type": ["string", "null"]}, "5"),
        ("null", {"type": ["string", "null"]}, None),
        ("true", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "true"),
        ("5", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 5),
        ('"5"', {"anyOf": [{"type": "string"}, {"type": "null"}]}, '"5"'),
        ("None", {"type": "string", "nullable": True}, None),
        ("1", {"enum": ["1", "2"]}, "1"),
        ("1", {"enum": ["a", 1]}, 1),
        ("NaN", {}, "NaN"),
        ("[1]", {}, [1]),
        ("['a', \"it's\"]", {"type": "array"}, ["a", "it's"]),
        ("", {"type": "array"}, []),
    ],
)
def test_values_without_quotes(text: str, schema: dict[str, Any], value: Any) -> None:
    """A value that a format writes without quotes is of the type that its schema takes."""
    assert json.loads(typed_value(text, schema)) == value
    assert "NaN" not in typed_value(text, schema) or isinstance(value, str)


def test_names_that_are_none_of_pythons() -> None:
    """A call in Python's form may have a name with hyphens, which texts beside it may hold too."""
    tool = {"type": "function", "function": {"name": "get-it.v2", "parameters": {}}}
    text = "<|tool_call_start|>[get-it.v2(s='get-it.v2(1)'), get-it.v2()]<|tool_call_end|>"
    calls = AnswerParser("lfm2", tools=[tool]).parse(text).tool_calls
    assert [(c.name, json.loads(c.arguments)) for c in calls] == [
        ("get-it.v2", {"s": "get-it.v2(1)"}),
        ("get-it.v2", {}),
    ]


def test_ids_differ() -> None:
    """Calls that a model gave one id have different ones."""
    call = "<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    ids = [call.id for call in whole("kimi", f"<|tool_calls_section_begin|>{call}{call}").tool_calls]
    assert ids == ["functions.add:0", ""]


def test_unknown_format() -> None:
    """A format that does not exist is refused with the names there are."""
    with pytest.raises(InvalidRequest, match="hermes"):
        AnswerParser("hermse")
