"""README's first command in fresh environments: seconds from an empty environment and an empty cache to the demo's end.

    python bench/first_minute.py [--python /usr/bin/python3] [--json bench/results/first_minute.json]

Everything is below one temporary folder: a copy of the sources, the environments, the cache of each. pip and uv have
empty caches too. The rows of uv need it on the PATH, the last two root, and a Python that everybody may run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import report

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 54_321  # a number without a name
_DROPPED = ("PYTHONPATH", "VIRTUAL_ENV", "LLCUDA_FFI_BUNDLE", "LLCUDA_FFI_OFFLINE", "LLCUDA_FFI_MIRROR")


class Newcomer:
    """A folder with the sources, and what somebody does there who has nothing yet."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.source, self.python = folder, folder / "llcuda_ffi", python
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        for name in filter(None, files.stdout.split("\0")):
            target = self.source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
        self.uv = shutil.which("uv")

    def run(self, command: Sequence[str | Path], cache: str, *, path: str | None = None, nobody: bool = False) -> None:
        """One command, in the folder, with a cache of that name."""
        environment = {name: value for name, value in os.environ.items() if name not in _DROPPED}
        environment |= {"LLCUDA_FFI_CACHE": str(self.folder / cache), "PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
        if path is not None:
            environment["PATH"] = path
        if not cache:
            del environment["LLCUDA_FFI_CACHE"]
        if nobody:
            environment["TMPDIR"] = str(self.folder / "tmp")
            environment.pop("HOME", None)
        done = subprocess.run(
            [str(word) for word in command], cwd=self.source, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, user=NOBODY if nobody else None,
            extra_groups=[] if nobody else None,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command[0]} gave {done.returncode}:\n{done.stdout[-2000:]}")

    def by_pip(self) -> None:
        """`python -m venv`, its pip, the demo."""
        self.run([self.python, "-m", "venv", self.folder / "pip"], "cache-pip")
        self.run([self.folder / "pip/bin/pip", "install", "--quiet", "."], "cache-pip")
        self.run([self.folder / "pip/bin/llcuda-ffi", "demo"], "cache-pip")

    def by_uv(self, name: str, *make: str) -> None:
        """An environment without pip, packages by uv, the demo."""
        place = self.folder / name
        self.run([*make, str(place)], f"cache-{name}")
        self.run([str(self.uv), "pip", "install", "--quiet", "--python", place / "bin/python", "."], f"cache-{name}")
        self.run([place / "bin/llcuda-ffi", "demo"], f"cache-{name}")

    def demo(self, cache: str, *, path: str | None = None, nobody: bool = False) -> None:
        """The demo alone, in the environment made by pip."""
        self.run([self.folder / "pip/bin/llcuda-ffi", "demo"], cache, path=path, nobody=nobody)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, metavar="FILE", help="write the seconds there too")
    p.add_argument("--python", default=sys.executable, help="of which the environments are made")
    a = p.parse_args()
    out: dict[str, Any] = {
        "benchmark": "first minute",
        "command": report.command(),
        "machine": report.host(),
        "seconds": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        new = Newcomer(Path(folder), a.python)
        bare = "/nowhere"
        steps: dict[str, Callable[[], None]] = {"`python -m venv` and its pip": new.by_pip}
        if new.uv:
            steps["one made by uv, without pip"] = lambda: new.by_uv("uv", str(new.uv), "venv", "--quiet")
            steps["`python -m venv --without-pip`, packages by uv (as poetry's are)"] = lambda: new.by_uv(
                "plain", a.python, "-m", "venv", "--without-pip"
            )
        steps["`llcuda-ffi demo` alone, no npm on the PATH"] = lambda: new.demo("cache-demo", path=bare)
        if os.getuid() == 0:
            steps["the same as a user without HOME and without a passwd entry"] = lambda: new.demo("", nobody=True)
            steps["the same user, a cache that is filled and read-only"] = lambda: new.demo("cache-pip", nobody=True)
        for what, step in steps.items():
            began = perf_counter()
            step()
            out["seconds"][what] = perf_counter() - began
            print(f"  {what:<70} {out['seconds'][what]:6.1f} s", flush=True)
    report.write(out, a.json)


if __name__ == "__main__":
    main()
