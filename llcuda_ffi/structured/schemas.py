"""JSON schemas rewritten: what templates and people write becomes what llguidance enforces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from decimal import Decimal
from itertools import combinations
from math import inf, nextafter
from typing import Any
from urllib.parse import unquote

from ..errors import InvalidRequest
from ..params import shown

# where schemas stand inside a schema: by name, in a list, alone; const, enum, default and the like hold values
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ALONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_ROOT = ("$defs", "definitions", "$schema", "$id")

_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_EXACT = 1 << 53  # llguidance computes in doubles
_LARGEST = 10**18  # and counts in 64 bits
_MOST_PARTS, _MOST_DEPTH = 64, 8

COMBINING = frozenset(("allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas"))
_OF_OBJECTS = frozenset(("properties", "patternProperties", "required", "additionalProperties"))
_MOST_ROUNDS = 16

# llguidance's own forms take 29 February in every year, the year 0000 and the second 60
_ANY_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_DAYS = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_ANY_YEAR}-{_DAYS}|(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_CLOCK})"
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}


def with_parts(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """`schema` with `change` made to each schema directly inside it."""
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            out[key] = {name: change(part) for name, part in value.items()}
        elif key in _LISTED and isinstance(value, (list, tuple)):
            out[key] = [change(part) for part in value]
        else:
            out[key] = change(value) if key in _ALONE else value
    return out


def without_nullable(schema: Any) -> Any:
    """`schema` in plain JSON schema: {"nullable": true}, which templates know, becomes a choice with null."""
    if not isinstance(schema, Mapping):
        return schema
    out = with_parts(schema, without_nullable)
    if not isinstance(out.get("nullable"), bool) or not out.pop("nullable"):
        return out
    root = {key: out.pop(key) for key in _ROOT if key in out}
    return {**root, "anyOf": [out, {"type": "null"}]}


def enforceable(schema: Any) -> Any:
    """`schema` without what llguidance reads otherwise than it is meant: dates, large numbers, some bounds.

    Raises:
        InvalidRequest: it asks for a number that cannot be written exactly.
    """
    if not isinstance(schema, Mapping):
        return schema
    out = with_parts(schema, enforceable)
    if out.get("uniqueItems") is False:
        del out["uniqueItems"]
    name = out.get("format")
    pattern = _FORMATS.get(name) if isinstance(name, str) else None
    if pattern is not None:
        del out["format"]
        if "pattern" in out:
            every = out.get("allOf")
            out["allOf"] = [*(every if isinstance(every, list) else ()), {"pattern": pattern}]
        else:
            out["pattern"] = pattern
    for key in ("const", "enum"):
        _check_exact(out.get(key))
    for key in _LOWER + _UPPER:
        if key in out and isinstance(out[key], (int, float)) and abs(out[key]) > _EXACT:
            out[key] = _inward(out[key], lower=key in _LOWER)
    _part_bounds(out)
    return out


def _check_exact(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _check_exact(part)
    elif isinstance(value, (int, float)) and (
        abs(value) > _LARGEST or (abs(value) > _EXACT and Decimal(repr(float(value))) != value)
    ):
        raise InvalidRequest(
            f"a structured output cannot hold {shown(value)} exactly: integers are exact up to 2 to the 53"
        )


def _inward(value: float, *, lower: bool) -> int:
    """A bound of many digits as an integer that a double holds, on the side of what is allowed."""
    if (value if lower else -value) > _LARGEST:
        raise InvalidRequest(f"a structured output cannot hold the bound {shown(value)}: numbers go up to 10 to the 18")
    bounded = max(-_LARGEST, min(_LARGEST, value))
    near = float(bounded)
    if (near < bounded) if lower else (near > bounded):
        near = nextafter(near, inf if lower else -inf)
    return int(near)


def _part_bounds(schema: dict[str, Any]) -> None:
    """Bounds of which one is excluded and whole, the other less than 1 away: llguidance lets the first in."""
    for here, there, sign in ((_LOWER, _UPPER, 1), (_UPPER, _LOWER, -1)):
        bound, others = schema.get(here[1]), [schema.get(key) for key in there]
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or bound != int(bound):
            continue
        for other in others:
            if isinstance(other, (int, float)) and 0 < (other - bound) * sign < 1:
                del schema[here[1]]
                inner = bound + (other - bound) / 1e6
                given = schema.get(here[0])
                schema[here[0]] = max(given * sign, inner * sign) * sign if isinstance(given, (int, float)) else inner
                break


def close_objects(schema: Any) -> Any:
    """`schema` where objects with declared properties take no others, unless they say that they do.

    JSON schema lets any property in; a model would make some up. Under allOf and the like one part does not know the
    properties of the others, so nothing is closed there, nor a definition that is referred to from there. Choices
    (oneOf) of which two never hold together become anyOf.
    """
    closing = _Closing(schema)
    for _ in range(_MOST_ROUNDS):  # a definition that turns out to be shared may share others
        known = len(closing.shared)
        closed = closing.close(schema, True)
        if len(closing.shared) == known:
            return closed
    return schema


class _Closing:
    """
    Attributes:
        shared: references to what is combined with something else.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self.shared: set[str] = set()

    def close(self, schema: Any, alone: bool) -> Any:
        """`alone`: nothing else says what properties the object has."""
        if not isinstance(schema, dict):
            return schema
        combining = COMBINING & schema.keys()
        every = schema.get("allOf")
        single = (
            alone
            and len(combining) == 1
            and not _OF_OBJECTS & schema.keys()
            and (not isinstance(every, list) or len(every) == 1)
        )
        whole = alone and (not combining or _only_require(schema, combining))
        reference = schema.get("$ref")
        if isinstance(reference, str) and not single:
            self.shared.add(reference)
        out: dict[str, Any] = {}
        for key, value in schema.items():
            if key in ("$defs", "definitions") and isinstance(value, dict):
                out[key] = {
                    name: self.close(part, f"#/{key}/{name.replace('~', '~0').replace('/', '~1')}" not in self.shared)
                    for name, part in value.items()
                }
            elif key in ("allOf", "anyOf") and isinstance(value, list):
                out[key] = [self.close(part, single) for part in value]
            elif key == "oneOf" and isinstance(value, list):
                apart = "anyOf" not in schema and self._all_apart(value, schema.get("type"), single)
                out["anyOf" if apart else key] = [self.close(part, single and apart) for part in value]
            elif key in ("not", "if", "then", "else", "dependentSchemas"):
                out[key] = value
            else:
                out[key] = with_parts({key: value}, lambda part: self.close(part, whole))[key]
        properties = out.get("properties")
        if whole and isinstance(properties, dict) and "additionalProperties" not in out:
            out["properties"] = {**properties, **{name: {} for name in _required(schema) if name not in properties}}
            out["additionalProperties"] = False
        return out

    def _all_apart(self, parts: list[Any], kind: Any, closed: bool) -> bool:
        """Whether no value is of two of the parts; `closed`: objects among them will be."""
        return len(parts) <= _MOST_PARTS and all(self._apart(a, b, kind, closed, 0) for a, b in combinations(parts, 2))

    def _apart(self, a: Any, b: Any, kind: Any, closed: bool, depth: int) -> bool:
        """Whether no value is of both.

        Args:
            kind: the type that stands beside them.
        """
        for part in (a, b):
            closed = closed and not (isinstance(part, dict) and part.get("$ref") in self.shared)
        a, b = self._resolved(a), self._resolved(b)
        if not isinstance(a, dict) or not isinstance(b, dict) or depth > _MOST_DEPTH:
            return False
        kinds = [type_names(part.get("type", kind)) for part in (a, b)]
        kinds = [found | {"integer"} if "number" in found else found for found in kinds]
        if all(kinds) and not kinds[0] & kinds[1]:
            return True
        first, second = ([part["const"]] if "const" in part else part.get("enum") for part in (a, b))
        if isinstance(first, list) and isinstance(second, list):
            return not any(x == y for x in first for y in second)
        if kinds != [{"object"}, {"object"}]:
            return False
        declared = [part["properties"] if isinstance(part.get("properties"), dict) else {} for part in (a, b)]
        needed = [set(_required(part)) for part in (a, b)]
        if any(
            name in declared[0]
            and name in declared[1]
            and self._apart(declared[0][name], declared[1][name], None, closed, depth + 1)
            for name in needed[0] & needed[1]
        ):
            return True
        lacks = [needed[1] - declared[0].keys(), needed[0] - declared[1].keys()]  # of the other's
        says = [part.get("additionalProperties") is False and "patternProperties" not in part for part in (a, b)]
        if any(lack and said for lack, said in zip(lacks, says, strict=True)):
            return True
        ours = closed and all("additionalProperties" not in p and "patternProperties" not in p for p in (a, b))
        return ours and all(lacks)

    def _resolved(self, schema: Any) -> Any:
        for _ in range(_MOST_DEPTH):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str) or schema.keys() & _OF_OBJECTS:
                break
            schema = target(self._root, schema["$ref"])
        return schema


def target(root: Any, reference: str) -> Any:
    """What a reference inside of a schema refers to; None where it is of another form, or there is nothing."""
    if reference == "#":
        return root
    part = root if reference.startswith("#/") else None
    for escaped in unquote(reference).split("/")[1:]:
        name = escaped.replace("~1", "/").replace("~0", "~")
        if isinstance(part, list) and name.isascii() and name.isdigit():
            part = part[int(name)] if int(name) < len(part) else None
        else:
            part = part.get(name) if isinstance(part, dict) else None
    return part


def type_names(kind: Any) -> set[str]:
    """The names that a schema's "type" has."""
    return {name for name in (kind if isinstance(kind, list) else [kind]) if isinstance(name, str)}


def _only_require(schema: dict[str, Any], combining: Set[str]) -> bool:
    """Whether what is combined with an object only asks for some of its properties: one of two, say."""
    names = schema["properties"].keys() if isinstance(schema.get("properties"), dict) else frozenset()
    parts = [part for key in combining for part in (schema[key] if isinstance(schema[key], list) else [None])]
    return all(
        isinstance(part, dict) and part.keys() <= {"required", "type", "title"} and names >= set(_required(part))
        for part in parts
    )


def _required(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
