"""Which modules a PEFT pattern means. Patterns come with an adapter's folder, from anywhere.

A pattern that is no plain name is a regular expression, and Python's can take for ever (`(a|a)*b`): those are matched
in a child process, which is stopped after some seconds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from ..child_process import python_command
from ..errors import InvalidModelFile

SECONDS = 10.0
_PLAIN = re.compile(r"[\w.-]+")


def first_match(patterns: Sequence[str], modules: Sequence[str]) -> Mapping[str, str]:
    """Module → the first pattern that means it: that names its end, or matches it as a regular expression.

    Raises:
        InvalidModelFile: a pattern is no regular expression, or takes too long.
    """
    names = {p for p in patterns if _PLAIN.fullmatch(p)}
    if names.issuperset(patterns):
        return _named(patterns, modules)
    try:
        done = subprocess.run(
            python_command(__name__),
            input=json.dumps([list(patterns), list(modules)]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        longest = max(set(patterns) - names, key=len)
        raise InvalidModelFile(
            f"the adapter's patterns take more than {SECONDS:g} s to match, {longest!r:.100} among them"
        ) from None
    answer = json.loads(done.stdout or '{"error": "the process that matches them ended"}')
    if "error" in answer:
        raise InvalidModelFile(f"the adapter's patterns cannot be used: {answer['error']}")
    found: dict[str, str] = answer["found"]
    return found


def _named(patterns: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """Plain names only; a dot in one stands for itself, as it does in the names of modules."""
    found = {}
    for module in modules:
        for pattern in patterns:
            if module == pattern or module.endswith(f".{pattern}"):
                found[module] = pattern
                break
    return found


def _main() -> None:
    patterns, modules = json.load(sys.stdin)
    found: dict[str, str] = {}
    try:
        compiled = {pattern: re.compile(rf"(.*\.)?({pattern})$") for pattern in patterns}
    except (re.error, RecursionError, OverflowError) as error:
        print(json.dumps({"error": f"{error}"}))
        return
    for module in modules:
        for pattern, regex in compiled.items():
            if regex.match(module):
                found[module] = pattern
                break
    print(json.dumps({"found": found}))


if __name__ == "__main__":
    _main()
