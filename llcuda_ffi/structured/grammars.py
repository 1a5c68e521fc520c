"""From SamplingParams to llguidance's grammars, and from the finished text to the parsed value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Any

from ..errors import InvalidRequest
from ..params import shown
from ..sampling_params import SamplingParams
from .schemas import close_objects, enforceable, target, without_nullable
from .types import type_schema, value_of

Read = Callable[[str], Any]

# One way to write a value: separators as json.dumps has them. Free white space lets small models write it for ever,
# and a single way leaves longer runs where there is no choice, which need no sampling.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_MOST_PATTERN = 16_384
MOST_TEXT = 256 << 10  # characters of a schema or grammar: seconds of compiling


def preceded(grammar: str, first: str, rules: Sequence[str]) -> str:
    """`grammar` after something else, such as a model's reasoning.

    Args:
        first, rules: what comes first, in llguidance's Lark, and the rules that it needs.
    """
    inner = {"name": "output", **json.loads(grammar)["grammars"][0]}
    lark = "\n".join([f"start: {first} @output", *rules])
    return _dump({"grammars": [{"name": "start", "lark_grammar": lark}, inner]})


def check_length(text: str) -> None:
    """Refuse a schema or grammar before work is done for it.

    Raises:
        InvalidRequest: it is too long.
    """
    if len(text) > MOST_TEXT:
        raise InvalidRequest(f"the schema or grammar has {len(text)} characters, more than {MOST_TEXT}")


def constrained(params: SamplingParams) -> bool:
    """Whether the settings ask for a structured output."""
    return any(getattr(params, name) is not None for name in ("json_schema", "regex", "choices", "grammar", "lark"))


def grammar_of(params: SamplingParams) -> tuple[list[str], Read]:
    """llguidance grammars to try in order, and how the finished text is read.

    Raises:
        InvalidRequest: of the wrong type.
    """
    if params.regex is not None:
        if not isinstance(params.regex, str) or not params.regex:
            raise InvalidRequest(f"regex must be a text, not {shown(params.regex)}")
        check_length(params.regex)
        return [_dump({"grammars": [{"lark_grammar": f"start: /{lark_regex(params.regex)}/"}]})], _same
    if params.choices is not None:
        return [_choices(params.choices)], _same
    if params.lark is not None:
        if not isinstance(params.lark, str) or not params.lark.strip():
            raise InvalidRequest(f"lark must be a grammar in Lark's syntax, not {shown(params.lark)}")
        check_length(params.lark)
        return [_dump({"grammars": [{"lark_grammar": params.lark}]})], _same
    return _json(params.json_schema)


def _choices(choices: Sequence[str]) -> str:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise InvalidRequest(f"choices must be a list of texts, not {shown(choices)}")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequest("choices must be texts, none empty")
    # one terminal: llguidance takes few alternatives of a rule, and many of a terminal
    texts = (json.dumps(choice, ensure_ascii=False).replace("\x7f", "\\u007f") for choice in choices)
    lark = "start: CHOICE\nCHOICE: " + " | ".join(texts)
    return _dump({"grammars": [{"lark_grammar": lark}]})


def _json(schema: Any) -> tuple[list[str], Read]:
    if isinstance(schema, (str, bytes)):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"json_schema is not JSON: {error}") from None
    read: Read = json_value
    if schema is True:
        schema = {}
    elif schema is None or isinstance(schema, (bool, int, float, str, list)):
        raise InvalidRequest(f"json_schema must be a JSON schema, which is an object, or a type: not {shown(schema)}")
    elif not isinstance(schema, Mapping):
        hint = schema
        schema, read = type_schema(hint, getattr(hint, "__name__", "json_schema")), _typed(hint)
    try:
        text = json.dumps(without_nullable(schema), ensure_ascii=False)
        check_length(text)
        opened = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"json_schema is no JSON schema: {error}") from None
    try:
        check_ends(opened)
        check_patterns(opened)
        closed = close_objects(opened)
    except RecursionError:
        raise InvalidRequest("json_schema is nested too deep") from None
    return [json_grammar(s) for s in ([closed, opened] if closed != opened else [opened])], read


def json_grammar(schema: Any) -> str:
    """llguidance's grammar of a JSON schema, with our way to write values."""
    return _dump({"grammars": [{"json_schema": guidance(schema)}]})


def guidance(schema: Any) -> Any:
    """`schema` with our way to write values."""
    if not isinstance(schema, dict):
        return schema
    given = schema.get("x-guidance")
    return {**enforceable(schema), "x-guidance": {**_JSON, **given} if isinstance(given, dict) else _JSON}


def broken_part(grammar: str, fails: Callable[[str], bool]) -> str:
    """Where in a grammar's JSON schema the deepest part stands that does not compile; "" for other grammars.

    In a huge schema it is looked for during two seconds.
    """
    until = monotonic() + 2.0
    schema = json.loads(grammar)["grammars"][-1].get("json_schema")
    if not isinstance(schema, dict):
        return ""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    place, found = "json_schema", True
    while found:
        found = False
        for path, part in _parts(schema):
            if monotonic() > until:
                return place
            if isinstance(part, (dict, bool)) and fails(
                json_grammar({**part, **shared} if isinstance(part, dict) else part)
            ):
                place, schema, found = place + path, part, True
                break
        if not isinstance(schema, dict):
            break
    return place


def _parts(schema: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The schemas directly inside `schema`, and their places."""
    parts: list[tuple[str, Any]] = []
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        inside = schema.get(key)
        if isinstance(inside, dict):
            parts += [(f"[{key!r}][{name!r}]", part) for name, part in inside.items()]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        inside = schema.get(key)
        if isinstance(inside, list):
            parts += [(f"[{key!r}][{i}]", part) for i, part in enumerate(inside)]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            parts.append((f"[{key!r}]", schema[key]))
    return parts


def check_ends(schema: Any, what: str = "json_schema") -> None:
    """Refuse a schema whose every value would be endless: an object that requires itself.

    Raises:
        InvalidRequest: there is no finite value; the message names the part.
    """
    # which references end is found by going round until nothing is new: following them may take for ever
    known: dict[str, bool] = {}
    ends, before = _ends(schema, known), (-1, 0)
    while not ends and (len(known), sum(known.values())) != before:
        before = (len(known), sum(known.values()))
        names = list(known)
        for name in names:  # grows while what they refer to is found
            known[name] = known[name] or _ends(target(schema, name), known)
            names.extend(islice(known, len(names), None))
        for name in reversed(names):
            known[name] = known[name] or _ends(target(schema, name), known)
        ends = _ends(schema, known)
    if not ends:
        raise InvalidRequest(f"this structured output cannot be had: {what} requires itself without end ($ref)")


def check_patterns(schema: Any, what: str = "json_schema") -> None:
    """Refuse a schema with a pattern that would take long to compile.

    Raises:
        InvalidRequest: there is one of over 16,384 characters.
    """
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            named = part.get("patternProperties")
            patterns = [part.get("pattern"), *(named if isinstance(named, dict) else ())]
            if any(isinstance(pattern, str) and len(pattern) > _MOST_PATTERN for pattern in patterns):
                raise InvalidRequest(f"{what} has a pattern of more than {_MOST_PATTERN} characters")
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)


def _ends(schema: Any, known: dict[str, bool]) -> bool:
    """Whether a value can be finite; references are as `known`, which learns the names of new ones."""
    if not isinstance(schema, dict):
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return known.setdefault(reference, False)
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list) and options and not any(_ends(option, known) for option in options):
            return False
    every = schema.get("allOf")
    if isinstance(every, list) and not all(_ends(part, known) for part in every):
        return False
    properties, required = schema.get("properties"), schema.get("required")
    kind = schema.get("type")
    if isinstance(kind, list) and len(kind) == 1:
        kind = kind[0]
    if kind in (None, "object") and isinstance(properties, dict) and isinstance(required, list):
        return all(_ends(properties.get(name), known) for name in required if isinstance(name, str))
    least = schema.get("minItems")
    if kind == "array" and isinstance(least, int) and least > 0:
        first = schema.get("prefixItems")
        items = [*(first if isinstance(first, list) else ()), schema.get("items")]
        return all(_ends(item, known) for item in items[:least])
    return True


def _typed(hint: Any) -> Read:
    def read(text: str) -> Any:
        value = json_value(text)
        try:
            return None if value is None else value_of(hint, value)
        except Exception:  # refused by the type's own code, which may raise anything
            return None

    return read


def part_read(output_of: Callable[[str], str | None], read: Read) -> Read:
    """Reads the part of a text that is the structured output."""

    def read_part(text: str) -> Any:
        part = output_of(text)
        return None if part is None else read(part)

    return read_part


def json_value(text: str) -> Any:
    """The value of a finished JSON text, or None where it is none (it was cut)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _same(text: str) -> Any:
    return text


def lark_regex(regex: str) -> str:
    r"""A pattern as it stands between Lark's slashes; \w is of what Python's is, letters and numbers.

    Raises:
        InvalidRequest: it ignores white space and has several lines.
    """
    if "\n" in regex and re.search(r"\(\?[a-zA-Z]*x", regex):
        raise InvalidRequest("a regex that ignores white space, (?x), must be one line")
    return "".join(_AS_LARK.get(piece, piece) for piece in re.findall(r"\\.|.", regex, re.DOTALL))


_AS_LARK = {"/": r"\/", "\n": r"\n", r"\w": r"[\p{L}\p{N}_]", r"\W": r"[^\p{L}\p{N}_]"}


def _dump(grammar: Any) -> str:
    return json.dumps(grammar, ensure_ascii=False)
