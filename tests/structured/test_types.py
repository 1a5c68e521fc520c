"""Python types as schemas, and the values of those types out of JSON."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import pytest

from llcuda_ffi.chat.tools.functions import function_schema
from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.sampling_params import SamplingParams
from llcuda_ffi.structured.grammars import grammar_of
from llcuda_ffi.structured.types import type_schema, value_of


@dataclass
class Point:
    x: int

    def __post_init__(self) -> None:
        assert self.x >= 0


class Named(TypedDict):
    name: str


class Switch(enum.IntEnum):
    ON = 1


class Model:
    """A model in pydantic's manner with another one inside."""

    inner: ClassVar[dict[str, Any]] = {"type": "integer"}

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """Its schema, which refers to a definition of its own."""
        properties = {"a": {"$ref": "#/$defs/Inner"}}
        return {"$defs": {"Inner": cls.inner}, "type": "object", "properties": properties, "required": ["a"]}

    @classmethod
    def model_validate(cls, value: dict[str, Any]) -> Model:
        """Its value, of any names."""
        return cls(**value)


class More(Model):
    """A model with more properties."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """Its schema."""
        return {"type": "object", "properties": {"a": {}, "b": {}}}


class Other(Model):
    """Another model, whose inner one has the name of the first's."""

    inner: ClassVar[dict[str, Any]] = {"type": "string"}


@pytest.mark.parametrize(
    ("hint", "value", "kind"),
    [
        (Point | str, "x", str),
        (Point | int, 5, int),
        (list[str] | str, "ab", str),
        (tuple[str, str] | str, "ab", str),
        (dict[str, str] | list[str], ["a"], list),
        (Named | str, "x", str),
        (Named | Point, {"x": 1}, Point),
        (Switch | bool, True, bool),
        (Literal[1] | bool, True, bool),
        (Model | More, {"a": 1, "b": 2}, More),
        (tuple, [1], tuple),
    ],
)
def test_parts_of_unions(hint: Any, value: Any, kind: type) -> None:
    """A value becomes the part of a union that it is of, and not one that could be made of it."""
    assert type(value_of(hint, value)) is kind


def test_a_validator_may_raise_anything() -> None:
    """What a type's own code refuses has no value, whatever it raises."""
    pytest.importorskip("llguidance")
    _, read = grammar_of(SamplingParams(json_schema=Point))
    assert read('{"x": 1}') == Point(1)
    assert read('{"x": -1}') is None


def test_tuples_have_their_length() -> None:
    """A tuple of two has two items."""
    schema = type_schema(tuple[int, str], "pair")
    assert (schema["minItems"], schema["maxItems"]) == (2, 2)


def test_definitions_stand_at_the_root() -> None:
    """Models inside lists, unions, dataclasses and arguments find their definitions."""
    for hint in (list[Model], Model | None, dict[str, list[Model]]):
        assert type_schema(hint, "x")["$defs"] == {"Inner": {"type": "integer"}}

    def f(m: Model, n: list[Model]) -> None:
        """Do something."""

    f.__annotations__ = {"m": Model, "n": list[Model]}
    assert function_schema(f)["function"]["parameters"]["$defs"] == {"Inner": {"type": "integer"}}
    with pytest.raises(InvalidRequest, match="called Inner"):
        type_schema(tuple[Model, Other], "x")


@pytest.mark.heavy
def test_bounds_in_pydantics_words() -> None:
    """Annotated[int, Field(ge=1)] and pydantic's dataclasses have their bounds."""
    pydantic = pytest.importorskip("pydantic")
    from typing import Annotated

    bounded = Annotated[int, pydantic.Field(ge=1)]
    assert type_schema(list[bounded], "x")["items"]["minimum"] == 1
    made = pydantic.dataclasses.dataclass(type("Made", (), {"__annotations__": {"a": bounded}}))
    assert type_schema(made, "x")["properties"]["a"]["minimum"] == 1
