"""Python in a child process, which imports nothing from the current folder.

`python -m` puts the current folder first on the child's path: a `logging.py` that lies there would run. So a child
runs isolated (`-I`) and takes the import path of this process, less the current folder; and this very package, wherever
it lies. This file is both the side that starts such a child and, run as a script, its first lines.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess  # the child, whose first lines these are too, has no use for it

_PACKAGE = Path(__file__).resolve().parent


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` as `python -m` would, but with nothing from the current folder."""
    return [sys.executable, "-I", os.path.abspath(__file__), json.dumps(import_path()), module, *arguments]


def import_path() -> list[str]:
    """This process's import path without the current folder; of a Python's own folders none is left out."""
    try:
        current = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        current = ""
    own = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return [
        entry
        for entry in sys.path
        if os.path.isabs(entry) and ((real := os.path.realpath(entry)) != current or real in own)
    ]


def after_fork(call: Callable[[], object]) -> None:
    """Have `call` run in each fork of this process, where the system has forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


def end_child(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill a child and leave nothing of it; in a fork of `owner`, the process that started it, do nothing."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # unsent bytes to a process that is gone
                pass


def _main() -> None:
    import runpy
    from importlib import util

    path, module = sys.argv[1:3]
    sys.path[:] = json.loads(path)
    del sys.argv[1:3]
    # not by the path: it may have another version, or lack the folder, which is the current one
    spec = util.spec_from_file_location(_PACKAGE.name, _PACKAGE / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules[_PACKAGE.name] = util.module_from_spec(spec)
    spec.loader.exec_module(package)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
