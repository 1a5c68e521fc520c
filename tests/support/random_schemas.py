"""Random JSON schemas: nested objects and arrays, enum, anyOf, $ref, pattern, formats, bounds, additionalProperties."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["name", "age", "city", "tags", "price", "active", "notes", "code", "when", "owner"]
_PATTERNS = ["^[A-Z]{3}-[0-9]{2,4}$", "^(red|green|blue)$", "^[a-z]+(_[a-z]+)?$", "^[0-9]{5}$"]
_FORMATS = ["date", "time", "date-time", "email", "uuid", "ipv4"]


def random_schema(seed: int) -> dict[str, Any]:
    """A schema of several features; the same for the same seed."""
    draw = random.Random(seed)
    schema = _object(draw, 2)
    if draw.random() < 0.25:
        schema["$defs"] = {"part": _leaf(draw)}
        name = draw.choice(_NAMES)
        schema["properties"][name] = {"$ref": "#/$defs/part"}
        schema["required"] = sorted({*schema.get("required", []), name})
    return schema


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(_NAMES, draw.randint(1, 3))
    schema: dict[str, Any] = {"type": "object", "properties": {n: _any(draw, depth) for n in names}}
    required = [n for n in names if draw.random() < 0.8]
    if required:
        schema["required"] = required
    if draw.random() < 0.4:
        schema["additionalProperties"] = False
    elif draw.random() < 0.1:
        schema["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
    return schema


def _any(draw: random.Random, depth: int) -> dict[str, Any]:
    kind = draw.random()
    if depth and kind < 0.2:
        return _object(draw, depth - 1)
    if depth and kind < 0.4:
        array: dict[str, Any] = {"type": "array", "items": _any(draw, depth - 1), "maxItems": draw.randint(1, 3)}
        if draw.random() < 0.5:
            array["minItems"] = draw.randint(0, array["maxItems"])
        return array
    if kind < 0.5:
        return {draw.choice(["anyOf", "anyOf", "oneOf"]): [_number(draw), {"type": "boolean"}, {"type": "null"}]}
    if depth and kind < 0.55:
        return {"type": "array", "prefixItems": [_leaf(draw), _leaf(draw)], "items": False, "minItems": 2}
    return _leaf(draw)


def _leaf(draw: random.Random) -> dict[str, Any]:
    kind = draw.randrange(8)
    if kind == 0:
        return {"enum": draw.sample(["a", "b b", 'c"', "ü", 1, 2.5, None, True], 3)}
    if kind == 1:
        return {"type": "string", "pattern": draw.choice(_PATTERNS)}
    if kind == 2:
        return {"type": "string", "format": draw.choice(_FORMATS)}
    if kind == 3:
        least = draw.randint(0, 4)
        return {"type": "string", "minLength": least, "maxLength": least + draw.randint(1, 12)}
    if kind == 4:
        return {"const": draw.choice(["fixed", 7, False])}
    if kind == 5:
        return {"type": draw.choice(["boolean", "null"])}
    return _number(draw)


def _number(draw: random.Random) -> dict[str, Any]:
    low = draw.randint(-50, 50)
    if draw.random() < 0.6:
        return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 200)}
    key = draw.choice(["minimum", "exclusiveMinimum"])
    return {"type": "number", key: low, "maximum": low + draw.randint(1, 100)}
