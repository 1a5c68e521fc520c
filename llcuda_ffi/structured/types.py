"""JSON schemas of Python types, and values of those types out of JSON."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import InvalidRequest
from .schemas import with_parts

SCALARS: dict[object, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}


def type_schema(hint: Any, what: str) -> dict[str, Any]:
    """The JSON schema of a type hint, as transformers' get_json_schema writes it for the types that both know.

    Args:
        what: names the place in exceptions.

    Raises:
        InvalidRequest: the type has none, or contains itself.
    """
    return with_root_definitions(_schema(hint, what, ()), what)


def _schema(hint: Any, what: str, inside: tuple[Any, ...]) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hasattr(hint, "__pydantic_core_schema__") and not hasattr(hint, "model_json_schema"):
        return _by_pydantic(hint)  # one of its dataclasses
    if origin is typing.Annotated:
        if any(type(a).__module__.partition(".")[0] in ("pydantic", "annotated_types") for a in args[1:]):
            return _by_pydantic(hint)
        schema = _schema(args[0], what, inside)
        text = next((a for a in args[1:] if isinstance(a, str)), None)
        return schema if text is None else {**schema, "description": text}
    if hint is Any:
        return {}
    try:
        hash(hint)
    except TypeError:
        raise InvalidRequest(f"{what} must be a JSON schema or a type, not {type(hint).__name__}") from None
    if hint in SCALARS:
        return {"type": SCALARS[hint]}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum([member.value for member in hint], what)
    if origin is Literal:
        return _enum(list(args), what)
    if origin in (Union, types.UnionType):
        return _union(args, what, inside)
    if hint in (list, tuple) or origin is list:
        return {"type": "array", "items": _schema(args[0], what, inside)} if args else {"type": "array"}
    if origin is tuple and args and ... not in args:
        items = [_schema(a, what, inside) for a in args]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if hint is dict:
        return {"type": "object"}
    if origin is dict and len(args) == 2:
        return {"type": "object", "additionalProperties": _schema(args[1], what, inside)}
    if hint in inside:
        raise InvalidRequest(f"{what}: {hint.__name__} contains itself; give a JSON schema with $ref instead")
    dump = getattr(hint, "model_json_schema", None)
    if callable(dump):
        return typing.cast("dict[str, Any]", dump())
    if typing.is_typeddict(hint):
        return _fields(hint, sorted(hint.__required_keys__), what, inside)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        required = [f.name for f in dataclasses.fields(hint) if f.init and not _has_default(f)]
        return _fields(hint, required, what, inside)
    raise InvalidRequest(
        f"{what} is of type {hint!r:.80}, which has no JSON schema here: use int, float, str, bool, list, "
        "dict, Literal, an Enum, a TypedDict, a dataclass, a pydantic model or a union of those, or give a JSON schema"
    )


def _by_pydantic(hint: Any) -> dict[str, Any]:
    """The schema of a type with bounds in pydantic's words (Field(ge=1)).

    Raises:
        InvalidRequest: pydantic is not installed, or has no schema for it.
    """
    try:
        pydantic = import_module("pydantic")
        return typing.cast("dict[str, Any]", pydantic.TypeAdapter(hint).json_schema())
    except Exception as error:  # of the type's own code, too
        raise InvalidRequest(f"pydantic gives no JSON schema of {hint!r:.80}: {error}") from None


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _fields(hint: Any, required: list[str], what: str, inside: tuple[Any, ...]) -> dict[str, Any]:
    try:
        hints = get_type_hints(hint, include_extras=True)
    except (NameError, TypeError) as error:
        raise InvalidRequest(f"the type hints of {hint.__name__} cannot be read: {error}") from None
    if dataclasses.is_dataclass(hint):
        hints = {f.name: hints[f.name] for f in dataclasses.fields(hint) if f.init}
    properties = {k: _schema(_bare(v), f"{what}.{k}", (*inside, hint)) for k, v in hints.items()}
    schema = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def _bare(hint: Any) -> Any:
    """A TypedDict's field without Required[…] or NotRequired[…]."""
    name = getattr(get_origin(hint), "_name", "")
    return get_args(hint)[0] if name in ("Required", "NotRequired", "ReadOnly") else hint


def _enum(values: list[Any], what: str) -> dict[str, Any]:
    names = list(dict.fromkeys(SCALARS.get(type(v)) for v in values))
    if not values or None in names:
        raise InvalidRequest(f"{what}: the values of a Literal or Enum must be int, float, str, bool or None")
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _union(args: tuple[Any, ...], what: str, inside: tuple[Any, ...]) -> dict[str, Any]:
    parts = [_schema(a, what, inside) for a in args if a is not type(None)]
    if len(parts) == 1:
        schema = parts[0]
    elif all(p.keys() == {"type"} and isinstance(p["type"], str) for p in parts):
        kinds = sorted({p["type"] for p in parts})
        schema = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        schema = {"anyOf": parts}
    return {**schema, "nullable": True} if type(None) in args else schema


def value_of(hint: Any, value: Any) -> Any:
    """A JSON value as the type that its schema came from: dataclasses, pydantic models and Enums are made.

    Raises:
        TypeError, ValueError, LookupError: the value does not fit.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return value_of(args[0], value)
    if origin in (Union, types.UnionType):
        for arg in args:
            try:
                if _may_be(arg, value):
                    return value_of(arg, value)
            except (TypeError, ValueError, LookupError):
                continue
        raise ValueError("no part of the union fits")
    if hint in SCALARS:
        number = hint is float and isinstance(value, int)
        if not (isinstance(value, hint) or number) or (isinstance(value, bool) and hint is not bool):
            raise TypeError("another type")
        return value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        made = hint(value)
        if isinstance(value, bool) != isinstance(made.value, bool):
            raise ValueError("True is not 1")
        return made
    validate = getattr(hint, "model_validate", None)
    if callable(validate):
        return validate(value)
    kind = _CONTAINERS.get(origin or hint) or (dict if _has_fields(hint) else None)
    if kind is not None and not isinstance(value, kind):
        raise TypeError("another type")
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        return hint(**{k: value_of(hints[k], v) for k, v in value.items()})
    if typing.is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=True)
        return {k: value_of(_bare(hints[k]), v) for k, v in value.items()}
    if origin is list and args:
        return [value_of(args[0], v) for v in value]
    if origin is tuple and args and ... not in args:
        return tuple(value_of(a, v) for a, v in zip(args, value, strict=True))
    if hint is tuple:
        return tuple(value)
    if origin is dict and len(args) == 2:
        return {k: value_of(args[1], v) for k, v in value.items()}
    if origin is Literal and not any(value == arg and isinstance(value, bool) == isinstance(arg, bool) for arg in args):
        raise ValueError("not one of the literals")
    return value


# what a JSON value must be to become one of these
_CONTAINERS: dict[object, type] = {list: list, tuple: list, dict: dict}


def _has_fields(hint: Any) -> bool:
    return typing.is_typeddict(hint) or (dataclasses.is_dataclass(hint) and isinstance(hint, type))


def _may_be(hint: Any, value: Any) -> bool:
    """Whether one part of a union is not ruled out by its names: pydantic's models leave out what they do not know,
    and a TypedDict is made of any names.
    """
    if not isinstance(value, dict):
        return True
    if typing.is_typeddict(hint):
        return bool(hint.__required_keys__ <= value.keys())
    dump = getattr(hint, "model_json_schema", None)
    schema = dump() if callable(dump) else {}
    names = schema.get("properties")
    return names is None or bool(schema.get("additionalProperties")) or value.keys() <= names.keys()


def with_root_definitions(schema: dict[str, Any], what: str) -> dict[str, Any]:
    """`schema` with the definitions that pydantic's models bring at its root, where their references look for them.

    Raises:
        InvalidRequest: two of one name differ.
    """
    found: dict[str, Any] = {}

    def lifted(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        part = dict(part)
        for name, definition in part.pop("$defs", {}).items():
            if found.setdefault(name, definition) != definition:
                raise InvalidRequest(f"{what}: two different models are called {name}")
        return with_parts(part, lifted)

    out: dict[str, Any] = lifted(schema)
    return {**out, "$defs": found} if found else out
