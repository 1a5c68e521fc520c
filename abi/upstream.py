"""The C declarations of a llama.cpp source tree, in the form of headers/."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from . import declarations

_FILES = (
    "ggml/include/ggml.h", "ggml/include/ggml-alloc.h", "ggml/include/ggml-backend.h", "ggml/include/ggml-cpu.h",
    "ggml/include/gguf.h", "include/llama.h",
)  # fmt: skip
_CPP = re.compile(r"^[ \t]*#[ \t]*ifdef[ \t]+__cplusplus\b.*?^[ \t]*#[ \t]*endif[^\n]*$", re.DOTALL | re.MULTILINE)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*$", re.MULTILINE)
_NUMBER = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(\d+)[ \t]*(?://[^\n]*)?$", re.MULTILINE)
_EXPORT = re.compile(r"\b(?:LLAMA_API|GGML_API|GGML_BACKEND_API|MTMD_API|GGML_CALL|GGML_NORETURN|extern)\b")
_ATTRIBUTE = re.compile(r"\bGGML_ATTRIBUTE_FORMAT\s*\([^)]*\)|\b__attribute__\s*\(\(.*?\)\)")
_DEPRECATED = re.compile(r"\b(?:GGML_)?DEPRECATED\s*\(")


def read_source(source: Path) -> dict[str, str]:
    """Key → declaration of a source tree, a header, or a Python file that holds them as a string."""
    if source.is_dir():
        texts = [(source / name).read_text() for name in _FILES if (source / name).exists()]
        if not texts:
            raise FileNotFoundError(f"{source} has no include/llama.h: give the folder of a llama.cpp source tree")
    elif source.suffix == ".py":
        constants = (node.value for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Constant))
        texts = [max((value for value in constants if isinstance(value, str)), key=len)]
    else:
        texts = [source.read_text()]
    found: dict[str, str] = {}
    numbers = dict(_NUMBER.findall("\n".join(texts)))
    for text in texts:
        for declaration in declarations.split(_plain(text, numbers)):
            plain, _ = declarations.without_typedef(declaration)
            found[declarations.key(plain)] = plain
    return found


def _plain(text: str, numbers: dict[str, str]) -> str:
    """A header without comments, directives, C++ and macros; constants as numbers."""
    text = _CPP.sub("", declarations.without_comments(text))
    text = re.sub(r"\b[A-Z]\w+\b", lambda word: numbers.get(word[0], word[0]), _DIRECTIVE.sub("", text))
    text = _ATTRIBUTE.sub("", _EXPORT.sub("", text))
    out, at = "", 0
    for found in _DEPRECATED.finditer(text):
        depth, end = 1, found.end()
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        inside = text[found.end() : end - 1]
        out += text[at : found.start()] + inside.rpartition(",")[0]
        at = end
    return out + text[at:]


def same_type(one: str, other: str) -> bool:
    """Whether two declarations of one key mean the same to a compiler.

    A handle (pointer to a struct that nobody sees) is the same as `void *`; an enum without the numbers of its members,
    as some Python packages have it, says nothing.
    """
    if one.startswith("enum") and "{" in one:
        first, second = _members(one), _members(other)
        return first == second or first is None or second is None
    if one.startswith("typedef") and "(" not in one + other and one.count("*") == other.count("*") == 1:
        return True
    return _shape(one) == _shape(other)


def _shape(text: str) -> list[str]:
    """A declaration's tokens less what makes no difference: names of parameters, `struct` before a type."""
    inside = re.sub(r"\b(struct|enum|union|GGML_RESTRICT|restrict)\b", " ", text.partition(" ")[2])
    # a parameter's name stands last, before a comma or a bracket
    if "{" not in text:
        head, bracket, parameters = inside.partition("(")
        parameters = re.sub(r"(?<=[\w*\s])\b(\w+)\s*(\[\s*\])?\s*(?=[,)])", lambda m: _last(m, parameters), parameters)
        inside = head + bracket + parameters
    return re.findall(r"\w+|[^\w\s]", inside)


def _last(found: re.Match[str], text: str) -> str:
    """The name of a parameter is dropped where a type stands before it."""
    before = re.split(r"[,(]", text[: found.start()])[-1].replace("const", " ").strip()
    return "*" if before and found[2] else ("" if before else found[1])


def _members(text: str) -> dict[str, int] | None:
    """An enum's members with their values; None where a value follows from a member that has none."""
    value = -1
    names: dict[str, int] = {}
    counted = "=" not in text
    for member in text[text.index("{") + 1 : text.rindex("}")].split(","):
        name, _, given = (part.strip() for part in member.partition("="))
        if not name:
            continue
        if given:
            known = re.sub(r"[A-Za-z_]\w*", lambda m: str(names.get(m[0], m[0])), given.replace("(int)", ""))
            shifted = re.fullmatch(r"(-?\d+|0x[0-9a-fA-F]+)(?:\s*<<\s*(\d+))?", known.strip("() "))
            if shifted is None:
                return None
            value = int(shifted[1], 0) << int(shifted[2] or 0)
        elif counted or name.endswith("_COUNT"):
            value += 1
        else:
            return None
        names[name] = value
    return {name: value for name, value in names.items() if not name.endswith("_COUNT")}
