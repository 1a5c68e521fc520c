"""Which ABI profile the libraries in a folder have: `python -m llcuda_ffi.native.measure FOLDER`.

Meant for a child process: a library of an unknown ABI may crash it. Prints one JSON object, {"profile": name}
or {"profile": null, "differences": [...]} with what keeps the nearest profile from fitting.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

from ..errors import AbiMismatch, LoadError
from . import guard
from .load import open_core
from .profile import PROFILES


def measure(folder: Path) -> str:
    """Load the libraries of `folder` into this process and name their profile.

    Raises:
        MissingLibrary: they cannot be loaded.
        AbiMismatch: no profile fits; the message says what differs from the nearest one.
    """
    os.environ["GGML_NO_BACKTRACE"] = "1"
    guard.check_single(folder, loaded=False)
    llama = open_core(folder, [path.name for path in folder.iterdir()])
    guard.check_single(folder, loaded=True)
    return fitting(llama)


def fitting(llama: ctypes.CDLL) -> str:
    """The profile of a loaded libllama.

    Raises:
        AbiMismatch: none fits.
    """
    found: dict[str, list[str]] = {}
    for profile in PROFILES.values():
        # a library without these symbols has another way of making its defaults: nothing to call
        lacking = [f"it lacks {name}" for name in profile.canaries if not hasattr(llama, name)]
        found[profile.name] = lacking or [
            *guard.version_problems(llama, profile),
            *guard.symbol_problems(llama, profile),
            *guard.canary_problems(llama, profile, exact=False),
        ]
        if not found[profile.name]:
            return profile.name
    nearest = min(found, key=lambda name: sum(len(problem) for problem in found[name]))
    raise AbiMismatch("; ".join([f"the nearest profile is {nearest}, but", *found[nearest]]))


def main(arguments: list[str]) -> int:
    """Measure one folder."""
    try:
        answer: dict[str, object] = {"profile": measure(Path(arguments[0]).resolve())}
    except LoadError as error:
        answer = {"profile": None, "differences": [str(error)]}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
