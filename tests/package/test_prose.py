"""Docstrings, comments and messages are wrapped by hand: no line ends long before its paragraph's width."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for top in ("llcuda_ffi", "tests", "bench")
    for path in (ROOT / top).rglob("*.py")
    if "_abi_" not in path.name and path.name != "enums.py"
)

_FULL = 104  # a line that the next word would still have left below this was broken early
_ENDS = (".", ":", ";", "!", "?", "…", ")", "`", '"', ",")  # an early end may be meant after these
_CODE = ("import ", "from ", ">>> ", "python ", "pytest ", "llcuda-ffi ")  # examples are no prose
_PIECE = 16  # a piece of a message this short, between two others, was cut off by a wrap


def _early(lines: list[tuple[int, str]]) -> Iterator[int]:
    """The numbers of lines that end early, though the paragraph goes on."""
    for (number, line), (_, after) in pairwise(lines):
        text, following = line.strip(), after.strip()
        indent, next_indent = len(line) - len(line.lstrip()), len(after) - len(after.lstrip())
        if not text or not following or indent != next_indent or not following[0].islower():
            continue
        if text.endswith(_ENDS) or "  " in text or text.startswith(_CODE):
            continue
        if len(line.rstrip()) + 1 + len(following.split()[0]) < _FULL:
            yield number


def _docstrings(tree: ast.Module) -> Iterator[list[tuple[int, str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                text = first.value.value
                if isinstance(text, str):
                    lines = text.split("\n")
                    lines[0] = " " * (first.col_offset + 3) + lines[0]
                    numbered = [(first.lineno + i, line) for i, line in enumerate(lines)]
                    numbered[0] = (first.lineno, lines[0])
                    if len(numbered) > 1:
                        # the first line stands three columns further in than those below it
                        numbered[0] = (first.lineno, " " * first.col_offset + '"""'.join(["", lines[0].strip()]))
                    yield numbered


def _comments(source: str) -> Iterator[list[tuple[int, str]]]:
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            line = " " * token.start[1] + "  " + token.string[1:].strip()
            if block and block[-1][0] + 1 != token.start[0]:
                yield block
                block = []
            block.append((token.start[0], line))
    yield block


def _cut_messages(source: str) -> Iterator[int]:
    """Pieces of an implicitly joined message that are only a word or two, between two others."""
    pieces: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING:
            pieces.append(token)
        elif token.type not in (tokenize.NL, tokenize.COMMENT):
            for before, piece, after in zip(pieces, pieces[1:], pieces[2:], strict=False):
                text = ast.literal_eval(piece.string) if piece.string[0] in "\"'" else ""
                alone = before.end[0] < piece.start[0] < after.start[0]
                if alone and isinstance(text, str) and text.endswith(" ") and 0 < len(text) <= _PIECE:
                    yield piece.start[0]
            pieces = []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_broken_wraps(path: Path) -> None:
    """No line of prose ends early in the middle of a sentence, and no message has a word on a line of its own."""
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    found = {n for lines in (*_docstrings(tree), *_comments(source)) for n in _early(lines)}
    found |= set(_cut_messages(source))
    assert not found, "broken wraps at lines " + ", ".join(map(str, sorted(found)))
