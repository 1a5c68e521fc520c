"""Tools: JSON schemas as OpenAI writes them, or Python functions, whose signature and docstring say it."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import InvalidRequest
from .messages import plain

Tool = Mapping[str, Any] | Callable[..., Any]

_SCALARS: dict[object, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def tool_schemas(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Each tool as {"type": "function", "function": {"name", "description", "parameters"}}.

    Raises:
        InvalidRequest: neither a schema nor a function, two of one name, or a type that has no JSON schema.
    """
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise InvalidRequest(f"tools must be a list of schemas or functions, not {type(tools).__name__}")
    schemas = [_schema(tool, i) for i, tool in enumerate(tools)]
    names = [s["function"]["name"] for s in schemas]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"two tools are called {name!r}: names must differ")
    return schemas


def _schema(tool: Tool, i: int) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        schema = plain(tool, f"tools[{i}]")
        if "function" not in schema and "name" in schema:
            schema = {"type": "function", "function": schema}
        function = schema.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"tools[{i}] has no 'function' with a 'name'")
        if not _NAME.fullmatch(function["name"]):
            raise InvalidRequest(
                f"tools[{i}]: names have letters, digits and _.:- only, not {function['name']!r:.60}"
            )
        if not isinstance(function.get("parameters", {}), dict):
            raise InvalidRequest(f"tools[{i}]['function']['parameters'] must be a JSON schema")
        return typing.cast("dict[str, Any]", schema)
    if callable(tool):
        return function_schema(tool)
    raise InvalidRequest(f"tools[{i}] must be a JSON schema or a function, not {type(tool).__name__}")


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a Python function, from its signature, type hints and Google-style docstring.

    Raises:
        InvalidRequest: a parameter without a type hint, or of a type that JSON has no schema for.
    """
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(f"a tool must be a named function, not {function!r:.60}")
    try:
        signature, hints = inspect.signature(function), get_type_hints(function)
    except (ValueError, TypeError, NameError) as error:
        raise InvalidRequest(f"the signature of {name}() cannot be read: {error}") from None
    summary, described = _docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidRequest(f"{name}() takes {parameter}, which a tool call cannot give")
        if parameter.name not in hints:
            raise InvalidRequest(f"the parameter {parameter.name!r} of {name}() has no type hint")
        schema = type_schema(hints[parameter.name], f"{name}({parameter.name})")
        if parameter.name in described:
            schema["description"] = described[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {"type": "function", "function": {"name": name, "description": summary, "parameters": parameters}}


def type_schema(hint: Any, what: str) -> dict[str, Any]:
    """The JSON schema of a type hint, as transformers' get_json_schema writes it.

    Raises:
        InvalidRequest: the type has none.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        schema = type_schema(args[0], what)
        text = next((a for a in args[1:] if isinstance(a, str)), None)
        return schema if text is None else {**schema, "description": text}
    if hint is Any:
        return {}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum([member.value for member in hint], what)
    if origin is Literal:
        return _enum(list(args), what)
    if origin in (Union, types.UnionType):
        return _union(args, what)
    if hint in (list, tuple) or origin is list:
        return {"type": "array", "items": type_schema(args[0], what)} if args else {"type": "array"}
    if origin is tuple and args and ... not in args:
        return {"type": "array", "prefixItems": [type_schema(a, what) for a in args]}
    if hint is dict:
        return {"type": "object"}
    if origin is dict and len(args) == 2:
        return {"type": "object", "additionalProperties": type_schema(args[1], what)}
    if typing.is_typeddict(hint):
        hints = get_type_hints(hint)
        required = sorted(hint.__required_keys__)
        schema = {
            "type": "object",
            "properties": {k: type_schema(v, f"{what}.{k}") for k, v in hints.items()},
        }
        return {**schema, "required": required} if required else schema
    raise InvalidRequest(
        f"{what} is of type {hint!r:.80}, which has no JSON schema here: use int, float, str, bool, list, "
        "dict, Literal, an Enum, a TypedDict or a union of those, or give the tool as a JSON schema"
    )


def _enum(values: list[Any], what: str) -> dict[str, Any]:
    names = list(dict.fromkeys(_SCALARS.get(type(v)) for v in values))
    if not values or None in names:
        raise InvalidRequest(f"{what}: the values of a Literal or Enum must be int, float, str, bool or None")
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _union(args: tuple[Any, ...], what: str) -> dict[str, Any]:
    parts = [type_schema(a, what) for a in args if a is not type(None)]
    if len(parts) == 1:
        schema = parts[0]
    elif all(p.keys() == {"type"} and isinstance(p["type"], str) for p in parts):
        kinds = sorted({p["type"] for p in parts})
        schema = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        schema = {"anyOf": parts}
    return {**schema, "nullable": True} if type(None) in args else schema


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and the parameters' descriptions from "Args:"."""
    sections = re.split(r"(?m)^(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?):[ \t]*$", text)
    described: dict[str, str] = {}
    for title, body in zip(sections[1::2], sections[2::2], strict=True):
        if title in ("Args", "Arguments", "Parameters"):
            described.update(_arguments(body))
    return sections[0].strip(), described


def _arguments(body: str) -> dict[str, str]:
    described: dict[str, str] = {}
    indent, name = -1, ""
    for line in body.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        start = re.match(r"\s*(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if start and (indent < 0 or depth <= indent):
            indent, name = depth, start.group(1)
            described[name] = start.group(2).strip()
        elif name:
            described[name] = f"{described[name]} {line.strip()}".strip()
    return described
