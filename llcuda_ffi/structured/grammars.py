"""From SamplingParams to llguidance's grammars, and from the finished text to the parsed value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InvalidRequest
from ..sampling_params import SamplingParams
from .types import type_schema, value_of, without_nullable

Read = Callable[[str], Any]

# One way to write a value: separators as json.dumps has them. Free white space lets small models write it for ever,
# and a single way leaves longer runs where there is no choice, which need no sampling.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_COMBINING = ("allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas")


def grammar_of(params: SamplingParams) -> tuple[list[str], Read]:
    """llguidance grammars to try in order, and how the finished text is read.

    Raises:
        InvalidRequest: of the wrong type.
    """
    if params.regex is not None:
        if not isinstance(params.regex, str) or not params.regex:
            raise InvalidRequest(f"regex must be a text, not {params.regex!r:.60}")
        return [_dump({"grammars": [{"lark_grammar": f"start: /{_slashes(params.regex)}/"}]})], _same
    if params.choices is not None:
        return [_choices(params.choices)], _same
    if params.lark is not None:
        if not isinstance(params.lark, str) or not params.lark.strip():
            raise InvalidRequest(f"lark must be a grammar in Lark's syntax, not {params.lark!r:.60}")
        return [_dump({"grammars": [{"lark_grammar": params.lark}]})], _same
    return _json(params.json_schema)


def _choices(choices: Sequence[str]) -> str:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise InvalidRequest(f"choices must be a list of texts, not {choices!r:.60}")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequest("choices must be texts, none empty")
    lark = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return _dump({"grammars": [{"lark_grammar": lark}]})


def _json(schema: Any) -> tuple[list[str], Read]:
    if isinstance(schema, (str, bytes)):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InvalidRequest(f"json_schema is not JSON: {error}") from None
    read: Read = json_value
    if schema is True:
        schema = {}
    elif not isinstance(schema, Mapping):
        hint = schema
        schema, read = type_schema(hint, getattr(hint, "__name__", "json_schema")), _typed(hint)
    try:
        opened = json.loads(json.dumps(without_nullable(schema)))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"json_schema is no JSON schema: {error}") from None
    closed = close_objects(opened)
    return [json_grammar(s) for s in ([closed, opened] if closed != opened else [opened])], read


def json_grammar(schema: Any) -> str:
    """llguidance's grammar of a JSON schema, with our way to write values."""
    return _dump({"grammars": [{"json_schema": guidance(schema)}]})


def guidance(schema: Any) -> Any:
    """`schema` with our way to write values."""
    if not isinstance(schema, dict):
        return schema
    return {**schema, "x-guidance": {**_JSON, **schema.get("x-guidance", {})}}


def close_objects(schema: Any) -> Any:
    """`schema` where objects with declared properties take no others, unless they say that they do.

    JSON schema lets any property in; a model would make some up. Under allOf and the like one part does not know the
    properties of the others, so nothing is closed there.
    """
    if isinstance(schema, list):
        return [close_objects(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
            out[key] = {name: close_objects(part) for name, part in value.items()}
        elif key in ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf"):
            out[key] = close_objects(value)
        else:
            out[key] = value
    alone = not any(key in schema for key in _COMBINING)
    if "properties" in schema and alone:
        out.setdefault("additionalProperties", False)
    return out


def _typed(hint: Any) -> Read:
    def read(text: str) -> Any:
        value = json_value(text)
        try:
            return None if value is None else value_of(hint, value)
        except (TypeError, ValueError, LookupError):  # cut, or refused by a validator of the type's own
            return None

    return read


def json_value(text: str) -> Any:
    """The value of a finished JSON text, or None where it is none (it was cut)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _same(text: str) -> Any:
    return text


def _slashes(regex: str) -> str:
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", regex).replace("\n", "\\n")


def _dump(grammar: Any) -> str:
    return json.dumps(grammar, ensure_ascii=False)
