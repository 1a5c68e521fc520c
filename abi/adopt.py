"""A profile for another llama.cpp, made by difference from a known one and measured on its library.

    python build_ffi.py adopt NAME LIBRARIES --base PROFILE [--source SOURCE] [--add FUNCTION ...] [--accept NAME ...]

LIBRARIES is the folder of its shared libraries. SOURCE is its source tree, one of its headers, or a Python file that
holds the declarations as a string. What differs from the base is written to headers/profile_NAME.h, what the library
says and writes to headers/profiles.toml. Functions of the source that are not declared here are listed; --add declares
them, with the types that they need. Nothing is written when something has to be decided by a person: a function
whose parameters changed, a struct that goes by value and is not measured, a layout that the library does not confirm.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from cffi import FFI

from . import declarations
from .upstream import read_source, same_type

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ROOT / "headers"
# function → the struct that it returns
CANARIES = {
    "llama_model_default_params": "struct llama_model_params",
    "llama_context_default_params": "struct llama_context_params",
    "llama_model_quantize_default_params": "struct llama_model_quantize_params",
    "llama_perf_context": "struct llama_perf_context_data",
    "llama_batch_get_one": "struct llama_batch",
}

# run in a child process: a library of an unknown ABI may crash it
_MEASURE = """
import ctypes, hashlib, json, sys
from pathlib import Path
from llcuda_ffi.native import guard
from llcuda_ffi.native.load import open_core
folder = Path(sys.argv[1]).resolve()
functions, names = json.loads(sys.argv[2])
library = open_core(folder, [path.name for path in folder.iterdir()])
found = {name: guard.version(library, name) for name in ("llama_version", "ggml_version")}
found["missing"] = [name for name in names if not hasattr(library, name)]
found["canary"] = {}
for name in functions:
    if hasattr(library, name):
        raw, untouched = guard.capture(library, name)
        extent = max(set(range(len(raw))) - untouched, default=-1) + 1
        holes = sorted(i for i in untouched if i < extent)
        digest = hashlib.sha256(raw[:extent]).hexdigest()[:16]
        found["canary"][name] = [extent, holes, digest, raw[:extent].hex()]
print(json.dumps(found))
"""


class Undecided(Exception):
    """What a person has to decide."""


def measure(libraries: Path, functions: list[str]) -> dict[str, Any]:
    """What the libraries in a folder say and write, and which of `functions` they lack."""
    arguments = [str(libraries), json.dumps([list(CANARIES), functions])]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Undecided(f"{libraries} cannot be measured: {said[-1] if said else f'exit status {done.returncode}'}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def difference(
    base: str, source: dict[str, str], missing: list[str], accepted: set[str], wanted: list[str]
) -> tuple[str, list[str]]:
    """The header of what differs from the declarations `base`, and what to tell about it.

    Raises:
        Undecided: A change of meaning that was not accepted, or a function to be added that is not in the source.
    """
    known = {declarations.key(text): text for text in declarations.split(base)}
    told, parts, open_questions = [], [], []
    for key_here, text_here in known.items():
        text, named = declarations.without_typedef(text_here)
        key = declarations.key(text)
        theirs = source.get(key)
        if key_here in missing or theirs is None or same_type(text, theirs):
            continue
        told.append(f"changed: {key}")
        by_value = key.startswith("struct") and key not in CANARIES.values()
        if (by_value or "(" in text.partition("{")[0]) and key not in accepted:
            open_questions.append(f"{key}:\n    was {_line(text)}\n    is  {_line(theirs)}")
        parts.append(f"typedef {theirs.removesuffix(';')}{named};" if named else theirs)
    if missing:
        told.append(f"gone: {' '.join(missing)}")
        parts.insert(0, f"/* gone: {' '.join(missing)} */")
    if absent := [name for name in wanted if name not in source]:
        raise Undecided(f"the source does not declare {' '.join(absent)}")
    parts += [source[key] for key in _with_types(wanted, source, known)]
    rest = [key for key in source if key not in known and key not in wanted and re.match(r"llama_\w+$", key)]
    if rest:
        told.append(f"not declared here: {' '.join(rest)}")
    if open_questions:
        raise Undecided(
            "parameters or structs without a canary changed. See who uses them, add what drifted to `signatures`, and "
            "run again with --accept for each:\n" + "\n".join(open_questions)
        )
    return "\n\n".join(parts) + "\n", told


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _with_types(added: list[str], source: dict[str, str], known: dict[str, str]) -> list[str]:
    """The functions and, before them, the types that they need and the base lacks."""
    needed: dict[str, None] = {}

    def need(key: str) -> None:
        if key in needed or key in known:
            return
        for kind, name in re.findall(r"\b(struct|enum|union)\s+(\w+)", source[key]):
            for other in (f"{kind} {name}", f"{kind} {name};"):
                if other in source and other != key and f"{kind} {name}" not in known:
                    need(other)
                    break
        for name in re.findall(r"\b(\w+)\b", source[key]):
            if f"typedef {name}" in source and f"typedef {name}" != key:
                need(f"typedef {name}")
        needed[key] = None

    for key in added:
        need(key)
    return list(needed)


def canary_entries(text: str, measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The canaries of a profile: what was measured, and the fields that are not 0 by the declarations `text`.

    Raises:
        Undecided: The library writes another number of bytes than the struct has.
    """
    ffi = FFI()
    ffi.cdef(text)
    entries = {}
    for name, (extent, holes, digest, raw) in measured.items():
        size = ffi.sizeof(CANARIES[name])
        padding = size - extent
        if not 0 <= padding < 8:
            raise Undecided(
                f"{name} writes {extent} bytes, {CANARIES[name]} has {size}: give the declarations of "
                "this llama.cpp as --source"
            )
        content = ffi.new(f"{CANARIES[name]} *")
        ffi.memmove(content, bytes.fromhex(raw), extent)
        entries[name] = {"extent": extent, "holes": holes, "digest": digest, "defaults": _defaults(ffi, content)}
    return entries


def _defaults(ffi: FFI, content: Any) -> dict[str, int]:
    """Field → value of those that are not 0."""
    found = {}
    for field, item in ffi.typeof(content).item.fields:
        if item.type.kind not in ("primitive", "enum"):
            continue
        value = getattr(content, field)
        if item.type.kind == "enum":
            value = int(ffi.cast("int", value))
        if int(value) != value:
            raise Undecided(f"the default of {field} is {value}: no whole number")
        if value:
            found[field] = int(value)
    return found


def _toml(
    name: str, headers: list[str], base: dict[str, Any], measured: dict[str, Any], canaries: dict[str, Any]
) -> str:
    lines = ["", "[[profile]]", f"name = {json.dumps(name)}", f"headers = {json.dumps(headers)}"]
    lines += [f"{key} = {json.dumps(measured[key])}" for key in ("llama_version", "ggml_version") if measured[key]]
    lines += [f"{key} = {json.dumps(base[key])}" for key in ("required", "forbidden", "signatures")]
    for function, entry in canaries.items():
        lines += ["", f"[profile.canary.{function}]"]
        lines += [f"{key} = {json.dumps(entry[key])}" for key in ("extent", "holes", "digest")]
        if entry["defaults"]:
            lines.append("defaults = { " + ", ".join(f"{k} = {v}" for k, v in entry["defaults"].items()) + " }")
    return "\n".join(lines) + "\n"


def adopt(
    name: str,
    libraries: Path,
    base: dict[str, Any],
    text: str,
    source: Path | None,
    accepted: set[str],
    wanted: list[str],
) -> list[str]:
    """Write the header and the entry of a new profile; returns what is to be told.

    Args:
        name: The new profile.
        libraries: The folder of its libraries.
        base: The entry of profiles.toml that it is made from.
        text: That profile's declarations.
        source: Where the new declarations are; None if nothing but the library is there.
        accepted: Keys of declarations whose change was looked at.
        wanted: Functions to be declared as well.

    Raises:
        Undecided: Something has to be decided first; nothing was written.
    """
    functions = [key for key in map(declarations.key, declarations.split(text)) if re.fullmatch(r"\w+", key)]
    measured = measure(libraries, functions)
    header, told = difference(text, read_source(source) if source else {}, measured["missing"], accepted, wanted)
    fresh = declarations.merged([text, header])
    canaries = canary_entries(fresh, measured["canary"])
    file = "profile_" + re.sub(r"\W", "_", name)
    versions = f"llama {measured['llama_version']}, ggml {measured['ggml_version']}"
    about = f"/* What drifts: profile {name} ({versions}) has everything of {base['name']}, and this */\n\n"
    (HEADERS / f"{file}.h").write_text(about + header)
    entry = _toml(name, [*base["headers"], file], base, measured, canaries)
    with (HEADERS / "profiles.toml").open("a") as profiles:
        profiles.write(entry)
    return told


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="build_ffi.py adopt", description="Make a profile for another llama.cpp.")
    made.add_argument("name", help="the new profile")
    made.add_argument("libraries", type=Path, help="the folder of its shared libraries")
    made.add_argument("--base", required=True, help="the nearest profile that is known")
    made.add_argument("--source", type=Path, help="its source tree, a header, or a Python file with its declarations")
    made.add_argument("--add", action="append", default=[], help="a function of the source to declare as well")
    made.add_argument("--accept", action="append", default=[], help="a declaration whose change was looked at")
    return made
