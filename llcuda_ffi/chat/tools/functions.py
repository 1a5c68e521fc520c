"""Tools: JSON schemas as OpenAI writes them, or Python functions, whose signature and docstring say it."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from ...errors import InvalidRequest
from ...structured.types import type_schema, with_root_definitions
from ..messages import plain

Tool = Mapping[str, Any] | Callable[..., Any]

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
            raise InvalidRequest(f"tools[{i}]: names have letters, digits and _.:- only, not {function['name']!r:.60}")
        if function.get("parameters") is None:
            function.pop("parameters", None)
        if not isinstance(function.get("parameters", {}), dict):
            raise InvalidRequest(f"tools[{i}]['function']['parameters'] must be a JSON schema")
        if function.get("parameters", {}).get("type", "object") != "object":
            raise InvalidRequest(f"tools[{i}]['function']['parameters'] must be the schema of an object")
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
        signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
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
    parameters = with_root_definitions(parameters, f"{name}()")
    return {"type": "function", "function": {"name": name, "description": summary, "parameters": parameters}}


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
