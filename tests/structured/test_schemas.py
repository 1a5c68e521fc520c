"""Schemas as they are rewritten: which values the grammar that is made takes, and which it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.chat.tools.choice import check_tools
from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.structured import constraint_for

pytest.importorskip("llguidance")

BASE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
MORE = {"type": "object", "properties": {"b": {"type": "integer"}}}
INHERITED = {"allOf": [{"$ref": "#/$defs/Base"}, MORE]}
CHOICE = [{"properties": {"b": {}}, "required": ["b"]}, {"properties": {"c": {}}, "required": ["c"]}]


def kind(name: str, *more: str) -> dict[str, Any]:
    """An object that says what it is."""
    properties = {"kind": {"const": name}, **{key: {"type": "integer"} for key in more}}
    return {"type": "object", "properties": properties, "required": ["kind", *more]}


CASES: list[tuple[str, dict[str, Any], list[Any], list[Any]]] = [
    ("a definition and more", {"$defs": {"Base": BASE}, **INHERITED}, [{"a": 1, "b": 2}, {"a": 1}], [{"b": 2}]),
    (
        "the same in a list",
        {"$defs": {"Base": BASE}, "type": "array", "items": INHERITED},
        [[], [{"a": 1, "b": 2}]],
        [[{"b": 2}]],
    ),
    (
        "a definition alone is closed",
        {"$defs": {"Base": BASE}, "type": "array", "items": {"$ref": "#/$defs/Base"}},
        [[{"a": 1}]],
        [[{"a": 1, "b": 2}]],
    ),
    (
        "properties beside a choice",
        {"type": "array", "items": {"properties": {"a": {}}, "anyOf": CHOICE}},
        [[{"a": 1, "b": 2}], [{"c": 3}]],
        [[{"a": 1}]],
    ),
    (
        "one of two properties",
        {"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 2}, {"a": 1, "b": 2}],
        [{}, {"a": 1, "c": 3}],
    ),
    (
        "required and not declared",
        {"type": "array", "items": {"type": "object", "properties": {"a": {}}, "required": ["b"]}},
        [[{"a": 1, "b": 2}], [{"b": None}]],
        [[{"a": 1}], [{"b": 2, "c": 3}]],
    ),
    ("a value that names nullable", {"const": {"nullable": True}}, [{"nullable": True}], [None]),
    (
        "a property of that name",
        {"type": "object", "properties": {"nullable": True}, "required": ["nullable"]},
        [{"nullable": 1}],
        [{}, None],
    ),
    (
        "nullable beside definitions",
        {"$defs": {"X": {"type": "integer"}}, "nullable": True, "properties": {"x": {"$ref": "#/$defs/X"}}},
        [None, {"x": 1}],
        [{"x": "1"}],
    ),
    ("uniqueItems: false", {"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, [[1, 1]], ["a"]),
    (
        "a choice told by a name",
        {
            "$defs": {"Cat": kind("cat", "n"), "Dog": kind("dog")},
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        },
        [{"kind": "cat", "n": 1}, {"kind": "dog"}],
        [{"kind": "dog", "n": 1}, {"kind": "cow"}],
    ),
    (
        "a choice told by what is there",
        {"oneOf": [{**BASE, "type": "object"}, {**MORE, "required": ["b"]}]},
        [{"a": 1}, {"b": 1}],
        [{"a": 1, "b": 1}, {}],
    ),
    ("an anchor", {"$defs": {"A": {"$anchor": "foo", "type": "integer"}}, "$ref": "#foo"}, [1], ["a"]),
    ("64 bits", {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, [-5, 10**18], ["a"]),
    (
        "more than doubles hold",
        {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 7},
        [2**53 + 4],
        [2**53, 2**53 + 8],
    ),
    ("a part of 1", {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, [0.25, 0.5], [0, 0.0, 0.51]),
    ("the same below 0", {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, [-0.25, -0.5], [0, -0.51]),
    ("nullable: false", {"type": "integer", "nullable": False}, [1], [None]),
    (
        "dates",
        {"type": "string", "format": "date"},
        ["2024-02-29", "2000-02-29", "2023-12-31"],
        ["2023-02-29", "1900-02-29", "2023-04-31", "0000-01-01"],
    ),
    (
        "dates and times",
        {"type": "string", "format": "date-time", "pattern": "Z$"},
        ["2024-02-29T23:59:59.5Z"],
        ["2023-02-29T23:59:59Z", "2024-02-29T23:59:60Z", "2024-02-29T23:59:59+01:00"],
    ),
]


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[Llama]:
    with Llama(tiny_llama, n_ctx=256, n_parallel=1) as llm:
        yield llm


def takes(llm: Llama, schema: Any, value: Any) -> bool:
    """Whether an output may be this value."""
    vocab = llm.model.vocab
    constraint = constraint_for(llm.model, SamplingParams(json_schema=schema))
    assert constraint is not None
    rest = json.dumps(value, ensure_ascii=False).encode()
    letters = {vocab.piece(token): token for token in range(vocab.n_tokens) if len(vocab.piece(token)) == 1}
    while rest:
        for token in constraint.forced() or [letters[rest[:1]]]:
            logits = np.zeros(vocab.n_tokens, np.float32)
            constraint.mask(logits)
            if logits[token] < 0 or vocab.is_eog(token) or not rest.startswith(vocab.piece(token)):
                return False
            constraint.accept(token)
            rest = rest[len(vocab.piece(token)) :]
    logits = np.zeros(vocab.n_tokens, np.float32)
    constraint.mask(logits)
    return bool(logits[vocab.eos] == 0)


@pytest.mark.parametrize(("schema", "yes", "no"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_values(llm: Llama, schema: dict[str, Any], yes: list[Any], no: list[Any]) -> None:
    """The values of a schema can be written, others cannot; as arguments of a tool too."""
    assert [value for value in yes if not takes(llm, schema, value)] == []
    assert [value for value in no if takes(llm, schema, value)] == []
    if "const" not in schema and all(isinstance(value, dict) for value in yes):
        check_tools(llm.model, [{"function": {"name": "f", "parameters": schema}}])


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"const": 2**53 + 1}, "exactly"),
        ({"enum": [{"id": 12345678901234567890}]}, "exactly"),
        ({"type": "integer", "minimum": 10**19}, "bound"),
        ({"oneOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"]}, MORE]}, "oneOf"),
        ({"type": ["object"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without end"),
        ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, "without end"),
    ],
)
def test_refused(llm: Llama, schema: dict[str, Any], words: str) -> None:
    """What would come out as something else is refused."""
    with pytest.raises(InvalidRequest, match=words):
        llm.generate("x", json_schema=schema, max_tokens=2)
