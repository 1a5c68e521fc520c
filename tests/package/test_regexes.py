"""Our regular expressions are matched in one pass: none repeats without end what itself repeats without end."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_constants as sre
    import sre_parse as parser

PACKAGE = Path(__file__).resolve().parents[2] / "llcuda_ffi"
FUNCTIONS = {"compile", "search", "match", "fullmatch", "sub", "subn", "findall", "finditer", "split"}


def patterns() -> Iterator[tuple[str, str]]:
    """Place and text of each regular expression that stands in the package as a constant, also parts of f-strings."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            if node.func.attr in FUNCTIONS and isinstance(node.func.value, ast.Name) and node.func.value.id == "re":
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", first.value


def nested(parsed: Any, inside: bool = False) -> bool:
    """Whether an endless repetition stands inside another one."""
    for kind, value in parsed:
        endless = kind in (sre.MAX_REPEAT, sre.MIN_REPEAT) and value[1] == sre.MAXREPEAT
        if endless and inside:
            return True
        for part in value if isinstance(value, (tuple, list)) else (value,):
            for inner in part if isinstance(part, list) else (part,):
                if isinstance(inner, parser.SubPattern) and nested(inner, inside or endless):
                    return True
    return False


FOUND = list(patterns())


def test_they_are_found() -> None:
    """The search finds them, and knows a nested repetition when it sees one."""
    assert len(FOUND) > 40
    for bad in (r"(a+)+b", r"(?:x(?:a|b*))*", r"(a*?)+", r"((ab)*c)*"):
        assert nested(parser.parse(bad)), bad
    for good in (r"a+b*", r'"(?:[^"\\]|\\.)*"', r"(a{2})+", r"(?:a|b)+"):
        assert not nested(parser.parse(good)), good


@pytest.mark.parametrize(("place", "pattern"), FOUND, ids=[place for place, _ in FOUND])
def test_no_nested_repetition(place: str, pattern: str) -> None:
    """No pattern of ours backtracks exponentially on what it is given."""
    re.compile(pattern)
    assert not nested(parser.parse(pattern)), place
