"""Schemas and grammars made to harm: each ends in one exception within a bound, or works; the process lives on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi import Llama
from llcuda_ffi.errors import InvalidRequest

pytest.importorskip("llguidance")

LOOP = {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"}
LIST = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["next"],
}
# written out it has 65,536 patterns, one after the other
DOUBLES = "start: T16\nT0: /(a|b)*/\n" + "\n".join(f"T{i + 1}: T{i} T{i}" for i in range(16))
CALLS = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, n_ctx=256, n_parallel=1) as llm:
        yield llm


def doubling(n: int) -> dict[str, Any]:
    """A schema whose references, followed one by one, are 2 to the n."""
    both = ("l", "r")
    defs: dict[str, Any] = {
        f"A{i}": {
            "type": "object",
            "properties": {key: {"$ref": f"#/$defs/A{i + 1}"} for key in both},
            "required": list(both),
        }
        for i in range(n)
    }
    return {"$defs": {**defs, f"A{n}": {"type": "integer"}}, "$ref": "#/$defs/A0"}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("references in a circle", {"json_schema": LOOP}, "without end"),
    ("a list of itself", {"json_schema": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}}, "without end"),
    ("no such part", {"json_schema": {"$ref": "#/$defs/none"}}, "does not exist"),
    ("another site", {"json_schema": {"$ref": "http://127.0.0.1:9/x"}}, "cannot be had"),
    ("deep text", {"json_schema": "[" * 100_000}, "not JSON"),
    ("a list", {"json_schema": [1]}, "which is an object"),
    ("a list as text", {"json_schema": "[1]"}, "which is an object"),
    ("null as text", {"json_schema": "null"}, "which is an object"),
    ("false", {"json_schema": False}, "which is an object"),
    ("empty enum", {"json_schema": {"enum": []}}, "nsatisfiable"),
    ("required is a number", {"json_schema": {"type": "object", "required": 5}}, "required"),
    ("lone surrogate", {"choices": ["\ud800", "b"]}, "cannot be had"),
    ("back reference", {"regex": r"(a)\1"}, "backreferences"),
    ("a regex that nothing matches", {"regex": r"a[^\s\S]"}, "unsatisfiable"),
    ("brackets", {"regex": "(" * 20_000 + ")" * 20_000}, "cannot be had"),
    ("a terminal that doubles", {"lark": DOUBLES}, "too big"),
    ("a long regex", {"regex": "(a|b)*" * 10_000}, "too big"),
    ("a long pattern", {"json_schema": {"items": {"pattern": "(a|b)*" * 10_000}}}, "more than 16384 characters"),
    ("a huge schema", {"json_schema": {"enum": [f"v{i}" for i in range(40_000)]}}, "more than 262144"),
    ("a huge grammar", {"lark": 'start: "a"' + " " * 3_000_000}, "more than"),
    ("an included file", {"lark": '%include "/etc/passwd"\nstart: "a"'}, "cannot be had"),
]


@pytest.mark.parametrize(("settings", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(llm: Llama, settings: dict[str, Any], words: str) -> None:
    """What cannot be compiled is refused with the reason."""
    with pytest.raises(InvalidRequest, match=words):
        llm.generate("x", max_tokens=2, **settings)


def test_deep_and_circular_objects(llm: Llama) -> None:
    """Schemas nested in themselves, or deeper than Python follows, are refused."""
    circle: dict[str, Any] = {}
    circle["items"] = circle
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(800):
        deep = {"type": "array", "items": deep}
    for schema in (circle, deep):
        with pytest.raises(InvalidRequest, match="json_schema"):
            llm.generate("x", json_schema=schema)


def test_large_but_sound(llm: Llama) -> None:
    """Recursion that can end, references that double at each step, and thousands of choices work."""
    assert llm.generate("x", json_schema=LIST, max_tokens=4).text.startswith("{")
    assert llm.generate("x", json_schema=doubling(40), max_tokens=4).text.startswith('{"l": {"')
    choices = [f"choice {i}" for i in range(5000)]
    assert llm.generate("x", choices=choices, max_tokens=20).text in choices
    assert llm.generate("x", choices=["a", "ab"], max_tokens=20).text in ("a", "ab")


def test_tool_that_requires_itself(llm: Llama) -> None:
    """A forced call whose arguments would be endless is refused at submit, with the function's name."""
    parameters = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(InvalidRequest, match=r"f\(\) requires itself"):
        llm.chat(CALLS, tools=[{"name": "f", "parameters": parameters}], tool_choice="f")


CHAINS = r"""
import sys
from llcuda_ffi import Llama
n = 3000
defs = {f"A{i}": {"$ref": f"#/$defs/A{i + 1}"} for i in range(n)}
schema = {"$defs": {**defs, f"A{n}": {"type": "integer"}}, "$ref": "#/$defs/A0"}
rules = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(n)) + f'\nr{n}: "a"'
with Llama(sys.argv[1], n_ctx=64, n_parallel=1) as llm:
    int(llm.generate("x", json_schema=schema, max_tokens=2).text)
    assert llm.generate("x", lark=rules, max_tokens=2).text == "a"
"""


def test_long_chains_do_not_overflow_the_stack(smollm2: Path) -> None:
    """Thousands of references one after the other: llguidance follows them by recursion, and the process lives."""
    done = subprocess.run([sys.executable, "-c", CHAINS, str(smollm2)], capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
