"""cmake, ninja and a compiler: those of the system, else wheels of cmake, ninja and ziglang in the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import BundleError
from ...fetch import wheel
from ...fetch.cache import cache_root, folder
from ...fetch.lock import entry_lock
from ...fetch.progress import note
from .. import pins

CMAKE_MIN = (3, 14)
# Set by conda and the like; flags of theirs would come before the ones that are chosen here.
_FOREIGN = re.compile(r"(C|CXX|LD|CPP)FLAGS|CMAKE_.*|SOURCE_DATE_EPOCH|MAKEFLAGS|NINJAFLAGS")


@dataclass(frozen=True)
class Tools:
    """What a build runs.

    Attributes:
        cmake, ninja: programs.
        options: what cmake is told about the compiler.
        environment: for all of them.
        compiler: the C compiler, for trying flags; empty for zig, which knows all.
        nvcc: the CUDA compiler, if there is one.
    """

    cmake: str
    ninja: str
    options: tuple[str, ...]
    environment: Mapping[str, str]
    compiler: tuple[str, ...] = ()
    nvcc: str | None = None


def find(progress: bool | None) -> Tools:
    """The tools for a build; those that the system lacks are fetched.

    Raises:
        BundleError: CC or CXX names no program, or this platform has no wheels of the tools.
        DownloadError: They could not be fetched.
    """
    environment = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
    cmake = _system_cmake() or _fetched("cmake", "cmake/data/bin/cmake", progress)
    ninja = shutil.which("ninja") or _fetched("ninja", "ninja-*.data/scripts/ninja", progress)
    compiler = [
        os.environ.get("CC") or _first("cc", "gcc", "clang"),
        os.environ.get("CXX") or _first("c++", "g++", "clang++"),
    ]
    nvcc = shutil.which("nvcc") or _first_path(Path("/usr/local/cuda/bin/nvcc"))
    if all(compiler):
        for program in compiler:
            if shutil.which(str(program).split()[0]) is None:
                raise BundleError(f"CC or CXX is {program!r}, which is no program here: unset it, or install it")
        return Tools(cmake, ninja, (), environment, tuple(str(compiler[0]).split()), nvcc)
    zig = Path(_fetched("ziglang", "ziglang/zig", progress))
    target = f"{os.uname().machine}-linux-gnu.2.28"
    scripts = zig.parent.parent / "scripts"
    folder(scripts)
    options = []
    for variable, command in (
        *(("C_COMPILER", f"cc -target {target}"), ("CXX_COMPILER", f"c++ -target {target}")),
        *(("AR", "ar"), ("RANLIB", "ranlib")),
    ):
        script = scripts / variable.lower()
        script.write_text(f'#!/bin/sh\nexec "{zig}" {command} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        options.append(f"-DCMAKE_{variable}={script}")
    caches = {f"ZIG_{kind}_CACHE_DIR": str(scripts.parent / "cache") for kind in ("GLOBAL", "LOCAL")}
    return Tools(cmake, ninja, tuple(options), {**environment, **caches}, (), None)


def _first(*names: str) -> str | None:
    return next((name for name in names if shutil.which(name)), None)


def _first_path(path: Path) -> str | None:
    return str(path) if path.exists() else None


def _system_cmake() -> str | None:
    """The system's cmake, if it is new enough."""
    program = shutil.which("cmake")
    if program is None:
        return None
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"version (\d+)\.(\d+)", said)
    return program if found and (int(found[1]), int(found[2])) >= CMAKE_MIN else None


def _fetched(name: str, program: str, progress: bool | None) -> str:
    """The path of a program out of a wheel, in the cache."""
    pin = pins.tool(name)
    place = cache_root() / "tools" / f"{pin.name}-{pin.version}"
    with entry_lock(place, f"fetching {name}", progress):
        if not place.is_dir():
            note(f"no usable {name} on this system: fetching its wheel", progress)
            wheel.unpack(pin, place, ["*"], progress=progress)
    found = next(place.glob(program), None)
    if found is None:
        raise BundleError(f"the wheel of {name} {pin.version} has no {program}: install {name} on this system")
    found.chmod(0o755)
    return str(found)


def lacks_flag(tools: Tools, flag: str) -> bool:
    """Whether the compiler does not know a flag."""
    if not tools.compiler:
        return False
    command = [*tools.compiler, flag, "-x", "c", "-c", "-", "-o", os.devnull]
    try:
        done = subprocess.run(
            command, input=b"", capture_output=True, timeout=60, check=False, env=dict(tools.environment)
        )
    except (OSError, subprocess.SubprocessError):
        return True
    return done.returncode != 0
