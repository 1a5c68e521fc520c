"""Structured output: what ends by itself is what was asked for."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.errors import InvalidRequest, MissingExtra
from llcuda_ffi.structured import guided
from llcuda_ffi.structured.schemas import close_objects
from llcuda_ffi.structured.types import type_schema, value_of

from ..support.random_schemas import random_schema
from ..support.tiny_architectures import TINY

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["alpha", "beta"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
}


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, n_ctx=512, n_parallel=8) as llm:
        yield llm


def validator(schema: Any) -> Any:
    """The reference implementation, formats included."""
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def test_an_old_llguidance_is_named(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.6 takes one token that ends a text, where models have several."""
    monkeypatch.setattr(guided, "version", lambda name: "1.6.1")
    with (
        Llama(tiny_llama, n_ctx=512) as llm,
        pytest.raises(MissingExtra, match=r"1\.7 or newer, not 1\.6\.1: pip install"),
    ):
        llm.generate("A number:", json_schema={"type": "integer"})


def test_random_schemas(llm: Llama) -> None:
    """At temperature 1, together in batches, every output that ends by itself validates; most do end.

    bench/structured.py does the same for 200 schemas.
    """
    schemas = [random_schema(seed) for seed in range(24)]
    from llcuda_ffi import SamplingParams

    params = [SamplingParams(json_schema=s, max_tokens=100, temperature=1.0, seed=i) for i, s in enumerate(schemas)]
    done = llm.generate(["An example in JSON:"] * len(schemas), params)
    ended = [(s, d) for s, d in zip(schemas, done, strict=True) if d.finish_reason == "eog"]
    assert len(ended) >= 16
    for schema, completion in ended:
        validator(schema).validate(completion.parsed)
        assert completion.parsed == json.loads(completion.text)


def test_unended_output_has_no_value(llm: Llama) -> None:
    """An output that max_tokens cut has parsed None and the reason "length"."""
    done = llm.generate("A person:", json_schema=PERSON, max_tokens=4)
    assert (done.parsed, done.finish_reason) == (None, "length")


def test_stream_stop_and_logprobs(llm: Llama) -> None:
    """Structured output streams, gives log probabilities, and stops at stop strings, with the same text."""
    settings: dict[str, Any] = {"json_schema": PERSON, "max_tokens": 60, "temperature": 1.0, "seed": 5}
    whole = llm.generate("A person:", **settings, prefix_cache=False)
    streamed = list(llm.stream("A person:", **settings, prefix_cache=False))
    assert "".join(c.text for c in streamed) == whole.text
    logprobs = llm.generate("A person:", **settings, logprobs=0).logprobs
    assert logprobs is not None
    assert all(entry.logprob <= 0 for entry in logprobs)
    stopped = llm.generate("A person:", **settings, stop='"age"')
    assert stopped.finish_reason == "stop"
    assert stopped.text == '{"name": "' + json.loads(whole.text)["name"] + '", '


def test_other_grammars(llm: Llama) -> None:
    """Regular expressions, choices, Lark and GBNF: the output is in the language."""
    for seed in range(3):
        regex = r"(\d{3}-)?\d{4}(/x|\\)?"
        assert re.fullmatch(regex, llm.generate("Phone:", regex=regex, seed=seed, temperature=1.0).text)
        choices = ["red", 'green "apple"', "blue\nsky"]
        done = llm.generate("I like", choices=choices, seed=seed, temperature=1.0)
        assert done.text in choices
        assert done.parsed == done.text
        assert re.fullmatch("a[0-9]{2}b", llm.generate("x", lark='start: "a" /[0-9]{2}/ "b"', seed=seed).text)
        assert llm.generate("x", grammar='root ::= "yes" | "no"', seed=seed).text in ("yes", "no")


def test_min_tokens_of_a_complete_structure(llm: Llama) -> None:
    """What is complete before min_tokens ends; what can go on does."""
    for structure in ({"choices": ["ab"]}, {"grammar": 'root ::= "ab"'}, {"json_schema": {"type": "boolean"}}):
        done = llm.generate("x", min_tokens=20, max_tokens=30, temperature=1.0, **structure)
        assert (done.text in ("ab", "true", "false"), done.finish_reason) == (True, "eog")
    assert len(llm.generate("x", regex="a*", min_tokens=20, max_tokens=30).token_ids) >= 20


def test_runs_without_choice_are_one_step(llm: Llama) -> None:
    """Where the grammar leaves one choice the tokens are not sampled one by one: fewer batches than tokens."""
    text = "The quick brown fox jumps over the lazy dog, again and again and again."
    steps = llm.engine.schedulers[0]._steps
    done = llm.generate("x", choices=[text])
    assert done.text == text
    assert llm.engine.schedulers[0]._steps - steps < len(done.token_ids) / 2
    again = llm.generate("x" + text, max_tokens=4, temperature=0)  # the cache holds what was accepted
    assert again.text == llm.generate("x" + text, max_tokens=4, temperature=0, prefix_cache=False).text


def test_runs_without_choice_in_a_vocabulary_that_adds_a_space(tmp_path: Path) -> None:
    """SentencePiece vocabularies put a space before a text; not in the middle of an answer."""
    TINY["gemma3"]().write(tmp_path / "tiny.gguf")
    schema = {
        "type": "object",
        "properties": {"the quick": {"enum": ["brown fox", "the dog"]}},
        "required": ["the quick"],
    }
    with Llama(tmp_path / "tiny.gguf", n_ctx=128, n_parallel=2) as llm:
        for seed in range(3):
            done = llm.generate("the", json_schema=schema, max_tokens=60, seed=seed)
            assert done.parsed["the quick"] in ("brown fox", "the dog")
            assert llm.generate("the", choices=["{ one }"], max_tokens=60, seed=seed).parsed == "{ one }"


def test_masks_together_are_those_of_each_row(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that llguidance's threads compute for all rows of a step give what masks row by row give."""
    settings: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "prefix_cache": False}
    params = [SamplingParams(json_schema=random_schema(i), seed=i, **settings) for i in range(6)]
    made = []
    for least in (2, 1000):
        monkeypatch.setattr("llcuda_ffi.structured.guided._LEAST_TOGETHER", least)
        made.append([done.token_ids for done in llm.generate(["In JSON:"] * 6, params)])
    assert made[0] == made[1]


def test_speculative_decoding_with_a_schema(smollm2: Path) -> None:
    """Together with drafting the output is still of the schema."""
    with Llama(smollm2, n_ctx=512, n_parallel=2, draft="ngram") as llm:
        for seed in range(2):
            done = llm.generate("A person:", json_schema=PERSON, max_tokens=60, seed=seed)
            if done.finish_reason == "eog":
                validator(PERSON).validate(done.parsed)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Movie(TypedDict, total=False):
    title: str
    year: int


@dataclass
class Point:
    x: int
    color: Color
    label: Literal["a", "b"] | None = None
    path: list[int] = field(default_factory=list)
    pair: tuple[int, str] = (0, "")


def test_types(llm: Llama) -> None:
    """A dataclass, an Enum, a TypedDict and a union give schemas, and parsed values of the type."""
    done = llm.generate("A point:", json_schema=Point, max_tokens=120, seed=2, temperature=0.5)
    if done.finish_reason == "eog":
        assert isinstance(done.parsed, Point)
        assert isinstance(done.parsed.color, Color)
    assert llm.generate("Colour:", json_schema=Color, seed=1).parsed in Color
    assert llm.generate("x", json_schema=Literal["only"]).parsed == "only"
    schema = type_schema(Point, "Point")
    assert schema["required"] == ["x", "color"]
    assert schema["properties"]["color"] == {"type": "string", "enum": ["red", "blue"]}
    value = {"x": 1, "color": "red", "label": None, "path": [1], "pair": [2, "b"]}
    assert value_of(Point, value) == Point(1, Color.RED, None, [1], (2, "b"))
    assert type_schema(Movie, "Movie") == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "year": {"type": "integer"}},
    }
    with pytest.raises((TypeError, ValueError)):
        value_of(Point, {**value, "x": "1"})


class Pet:
    """What pydantic's models offer: a schema, and values by model_validate."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        """Its schema."""
        return {"type": "object", "properties": {"name": {"enum": ["Rex", "Tom"]}}, "required": ["name"]}

    @classmethod
    def model_validate(cls, value: Any) -> Pet:
        """Its value; Tom is refused."""
        if value["name"] == "Tom":
            raise ValueError("no Tom")
        return cls(**value)


def test_models_with_validators(llm: Llama) -> None:
    """A class in pydantic's manner makes the value; where its validator refuses, parsed is None."""
    for seed in range(4):
        done = llm.generate("A pet:", json_schema=Pet, max_tokens=40, seed=seed, temperature=1.5)
        assert done.parsed is None if "Tom" in done.text else done.parsed.name == "Rex"


@pytest.mark.heavy
def test_pydantic_models(llm: Llama) -> None:
    """A pydantic model works as a schema and makes the value."""
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Pet", name=(Literal["Rex", "Tom"], ...), legs=(int, pydantic.Field(ge=3, le=4)))
    done = llm.generate("A pet:", json_schema=model, max_tokens=40, seed=1)
    assert isinstance(done.parsed, model)


BAD = [
    ({"json_schema": {"type": "object", "properties": {"a": {"minimum": 5, "maximum": 2, "type": "integer"}},
                      "required": ["a"]}}, r"unsatisfiable.*\['properties'\]\['a'\]"),
    ({"json_schema": {"properties": {"a": {"items": {"not": {}}}}}}, r"not.*\['properties'\]\['a'\]\['items'\]"),
    ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json_schema": {"type": "thing"}}, "thing"),
    ({"json_schema": {"$ref": "#/$defs/none"}}, "none"),
    ({"json_schema": {"$ref": "https://example.com/schema"}}, "example.com"),
    ({"json_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}}, "without end"),
    ({"json_schema": {"enum": []}}, "empty"),
    ({"json_schema": {"type": "string", "pattern": "(?=a)b"}}, "look-ahead"),
    ({"json_schema": {"type": "string", "format": "shoe-size"}}, "shoe-size"),
    ({"json_schema": "{"}, "not JSON"),
    ({"json_schema": object}, "no JSON schema"),
    ({"json_schema": 7}, "must be a JSON schema"),
    ({"regex": "(a"}, "regex"),
    ({"regex": ""}, "regex"),
    ({"choices": []}, "choices"),
    ({"choices": "red"}, "choices"),
    ({"choices": ["a", ""]}, "choices"),
    ({"lark": "start: missing"}, "missing"),
    ({"grammar": "root ::= ("}, "grammar"),
    ({"regex": "a", "choices": ["a"]}, "only one"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), BAD)
def test_refused_at_submit(llm: Llama, settings: dict[str, Any], words: str) -> None:
    """What is broken, unsupported or cannot be satisfied is refused before anything is computed, naming the part."""
    with pytest.raises(InvalidRequest, match=words):
        llm.generate("x", **settings)


def test_objects_are_closed() -> None:
    """Objects with declared properties take no others, unless they say so or are combined with other schemas."""
    plain = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    closed = close_objects(plain)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    opened = {"type": "object", "properties": {}, "additionalProperties": True}
    assert close_objects(opened) == opened
    combined = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert close_objects(combined) == combined
    assert close_objects({"properties": {"properties": {"type": "string"}}})["properties"].keys() == {"properties"}
