"""C declarations as text: split into single ones, each with a key, so that a later one can replace an earlier one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# A profile's file says so of what an earlier file declares and its llama.cpp no longer has.
_GONE = re.compile(r"/\*\s*gone:\s*(.*?)\*/", re.DOTALL | re.IGNORECASE)

_TYPEDEF = re.compile(r"typedef\s+((?:struct|enum|union)\s+\w+\s*\{.*\})\s*(\w+)\s*;", re.DOTALL)


def without_comments(text: str) -> str:
    """The text with each comment as one space."""
    return _COMMENT.sub(" ", text)


def split(text: str) -> Iterator[str]:
    """The declarations of a text without comments and directives, each with its semicolon."""
    depth, start = 0, 0
    for at, letter in enumerate(text):
        if letter in "{(":
            depth += 1
        elif letter in "})":
            depth -= 1
        elif letter == ";" and depth == 0:
            yield text[start : at + 1].strip()
            start = at + 1


def key(declaration: str) -> str:
    """What a declaration declares: "struct NAME", "enum NAME", "typedef NAME" or a function's name.

    A forward declaration has a key of its own ("struct NAME;"): it does not replace the definition.
    """
    if found := re.match(r"(struct|union|enum)\s+(\w+)\s*([{;])", declaration):
        return f"{found[1]} {found[2]}" + (";" if found[3] == ";" else "")
    if declaration.startswith("typedef"):
        pointer = re.search(r"\(\s*\*\s*(\w+)\s*\)\s*\(", declaration)
        plain = re.search(r"(\w+)\s*(?:\[[^\]]*\])?\s*;$", declaration)
        found = pointer or plain
        return f"typedef {found[1]}" if found else declaration
    found = re.search(r"(\w+)\s*\(", declaration)
    return found[1] if found else declaration


def without_typedef(declaration: str) -> tuple[str, str]:
    """`typedef struct NAME {...} NAME;` as `struct NAME {...};` and " NAME"; any other as it is and ""."""
    found = _TYPEDEF.match(declaration)
    return (f"{found[1]};", f" {found[2]}") if found else (declaration, "")


def merged(texts: Iterable[str]) -> str:
    """The declarations of several files: where two have one key the later one stands in the place of the first."""
    found: dict[str, str] = {}
    for text in texts:
        for names in _GONE.findall(text):
            for name in names.split():
                found.pop(name, None)
        for declaration in split(without_comments(text)):
            found[key(declaration)] = declaration
    return "\n".join(found.values()) + "\n"
