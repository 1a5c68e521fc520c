"""Structured output and forced calls of models that think first: the constraint begins after the reasoning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi import ChatCompletion, Llama
from llcuda_ffi.errors import InvalidRequest

pytest.importorskip("llguidance")

# a small model thinks as it is shown to, so the template shows it
SHOWN = """{% for i in range(5) %}<|im_start|>user
Color?<|im_end|>
<|im_start|>assistant
<think>
Sky.
</think>

{"color": "blue"}<|im_end|>
{% endfor %}"""
ASK = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
FREE = SHOWN + ASK
OPENED = FREE + "<think>\n"
CLOSED = FREE + "<think>\n\n</think>\n\n"
HARMONY = (
    "<|start|>user<|message|>Color?<|end|><|start|>assistant<|channel|>analysis<|message|>Sky.<|end|>"
    '<|start|>assistant<|channel|>final<|message|>{"color": "blue"}<|return|>\n'
) * 4 + "<|start|>user<|message|>{{ messages[0].content }}<|end|><|start|>assistant"
HI = [{"role": "user", "content": "Color?"}]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "n": {"type": "integer", "minimum": 5, "maximum": 7}},
    "required": ["color", "n"],
}
FIND = {"type": "function", "function": {"name": "find", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, n_ctx=1024, n_parallel=4) as llm:
        yield llm


def ask(llm: Llama, template: str, **settings: Any) -> ChatCompletion:
    """The answer, which streams as it comes whole."""
    settings = {"template": template, "max_tokens": 96, "temperature": 0, **settings}
    done: ChatCompletion = llm.chat(HI, **settings)
    last = list(llm.chat_stream(HI, **settings))[-1].completion
    assert last is not None
    assert (last.text, last.message.reasoning_content, last.parsed) == (
        done.text, done.message.reasoning_content, done.parsed,
    )  # fmt: skip
    return done


@pytest.mark.parametrize(("template", "reasoning"), [(FREE, "Sky."), (OPENED, "Sky."), (CLOSED, None)])
def test_schema_begins_after_the_reasoning(llm: Llama, template: str, reasoning: str | None) -> None:
    """The model thinks freely where its template lets it, then writes what the schema says, which is parsed."""
    done = ask(llm, template, json_schema=SCHEMA)
    assert done.message.reasoning_content == reasoning
    assert done.parsed["color"] == "blue"
    assert 5 <= done.parsed["n"] <= 7
    assert done.text.startswith("{")
    assert done.finish_reason == "stop"
    chosen = ask(llm, template, choices=["red", "blue"])
    assert (chosen.text, chosen.parsed, chosen.message.reasoning_content) == ("blue", "blue", reasoning)


def test_reasoning_that_is_cut_has_no_value(llm: Llama) -> None:
    """What max_tokens cuts inside the reasoning is reasoning; nothing is parsed."""
    done = ask(llm, OPENED, json_schema=SCHEMA, max_tokens=2)
    assert (done.text, done.parsed, done.finish_reason) == ("", None, "length")
    assert done.message.reasoning_content
    assert ask(llm, OPENED, tools=[FIND], tool_choice="find", max_tokens=2).parsed is None


def test_forced_call_begins_after_the_reasoning(llm: Llama) -> None:
    """A forced call parses after reasoning that the prompt opened."""
    done = ask(llm, OPENED, tools=[FIND], tool_choice="find")
    assert done.message.reasoning_content
    assert [call.name for call in done.tool_calls] == ["find"]
    assert set(done.tool_calls[0].parsed_arguments()) == {"color", "n"}


def test_harmony_answers_in_its_channel(llm: Llama) -> None:
    """A format of channels writes the structured output as its final message."""
    done = ask(llm, HARMONY, json_schema=SCHEMA)
    assert done.parsed["color"] == "blue"
    assert done.text.startswith("{")


def test_gbnf_after_opened_reasoning_is_refused(llm: Llama) -> None:
    """GBNF grammars hold from the first token: with reasoning opened that is refused, and otherwise it works."""
    with pytest.raises(InvalidRequest, match="opened the model's reasoning"):
        ask(llm, OPENED, grammar='root ::= "yes"')
    assert ask(llm, CLOSED, grammar='root ::= "yes"').text == "yes"


def test_broken_schema_is_named_after_reasoning(llm: Llama) -> None:
    """A schema that cannot be had is refused at submit, and the part is named, also after reasoning."""
    schema = {
        "type": "object",
        "properties": {"x": {"type": "string", "minLength": 5, "maxLength": 2}},
        "required": ["x"],
    }
    with pytest.raises(InvalidRequest, match=r"\['x'\]"):
        llm.chat(HI, template=OPENED, json_schema=schema)
