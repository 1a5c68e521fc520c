"""No private doors: what begins with an underscore is touched by its own object, or in its own file, only."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from .test_layers import FILES, PACKAGE

# the native object, libllama's functions and cffi: known to the two lowest layers
NATIVE = {"_ptr", "_lib", "_ffi"}

# what begins with an underscore all the same: a protected method of Handle, by which classmethods make their objects,
# and the standard library's
ALLOWED = {"_make", "_own", "_exit", "_handle"}


def _reaches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each underscore attribute of another object whose class is not in this file."""
    own = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            targets = [node] if isinstance(node.ctx, ast.Store) else []
            own |= {t.attr for t in targets if isinstance(t.value, ast.Name) and t.value.id in ("self", "cls")}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        of_itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if not of_itself and node.attr not in own:
            yield node.lineno, node.attr


@pytest.mark.parametrize("module", FILES)
def test_no_private_doors(module: str) -> None:
    """No file touches an underscore attribute of an object that another file defines."""
    found = [
        f"{FILES[module].relative_to(PACKAGE)}:{line} {name}"
        for line, name in _reaches(ast.parse(FILES[module].read_text()))
        if name not in ALLOWED
    ]
    assert found == []


@pytest.mark.parametrize("module", [m for m in FILES if m.split(".")[1:2] not in (["native"], ["core"])])
def test_native_names_below(module: str) -> None:
    """`_ptr`, `_lib` and `_ffi` are written in native/ and core/ only."""
    tree = ast.parse(FILES[module].read_text())
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & NATIVE
    assert found == set()
