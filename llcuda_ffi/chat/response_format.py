"""OpenAI's response_format."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest
from ..params import shown
from ..sampling_params import SamplingParams


def with_response_format(params: SamplingParams, response_format: Mapping[str, Any] | None) -> SamplingParams:
    """OpenAI's response_format as json_schema.

    Raises:
        InvalidRequest: it is of another type or shape.
    """
    if response_format is None:
        return params
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind in ("text", "json_object", "json_schema"):
        inner = response_format.get("json_schema")
        _check_keys(response_format, {"type", "schema", "json_schema"}, "response_format")
        if isinstance(inner, Mapping):
            _check_keys(inner, {"name", "description", "schema", "strict"}, "response_format['json_schema']")
        schema = inner.get("schema") if isinstance(inner, Mapping) else response_format.get("schema")
        if kind == "text" and schema is None:
            return params
        if kind == "json_object":
            return dataclasses.replace(params, json_schema={"type": "object"} if schema is None else schema)
        if kind == "json_schema" and schema is not None:
            return dataclasses.replace(params, json_schema=schema)
    raise InvalidRequest(
        "response_format must be {'type': 'text' | 'json_object'} or {'type': 'json_schema', 'json_schema': "
        f"{{'schema': …}}}}, not {shown(response_format)}; regex, choices and grammar are settings of their own"
    )


def _check_keys(given: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(str(key) for key in given.keys() - known)
    if unknown:
        raise InvalidRequest(f"{what} has the unknown key {unknown[0]!r:.60}: it takes {', '.join(sorted(known))}")
