"""Where CUDA's runtime libraries lie on this machine: in wheels, a toolkit, or the linker's cache.

Nothing is loaded here and no environment variable is changed: the paths found are opened by name later.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

COMMANDS = {
    12: "pip install 'llcuda-ffi[cuda12]'",
    13: "pip install 'llcuda-ffi[cuda13]'",
}


@dataclass(frozen=True)
class CudaLibraries:
    """The result of a search.

    Attributes:
        paths: SONAME → file, of those that were found.
        missing: SONAMEs that were not.
        origin: where they are: "wheels", "torch", "toolkit", "linker cache", joined when they are of several.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    origin: str = ""


def sonames(major: int) -> tuple[str, ...]:
    """What libggml-cuda of that CUDA version needs, in the order of loading."""
    return (f"libcudart.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}")


def command_for(soname: str) -> str:
    """What a user runs to get a missing library."""
    match = re.fullmatch(r"lib(cudart|cublas|cublasLt)\.so\.(\d+)", soname)
    if match and int(match[2]) in COMMANDS:
        return COMMANDS[int(match[2])]
    if soname.startswith("libnccl"):
        return "pip install nvidia-nccl-cu13"
    if soname.startswith("libcuda."):
        return "install the NVIDIA driver"
    return f"install the package that has {soname}"


def find(wanted: Iterable[str]) -> CudaLibraries:
    """Find libraries by SONAME; the first place that has them all, else each from the first that has it."""
    names = tuple(wanted)
    places: list[tuple[str, dict[str, Path]]] = []
    for origin, folders in _places():
        there = {name: folder / name for folder in reversed(folders) for name in names if (folder / name).exists()}
        if len(there) == len(names):
            return CudaLibraries(there, (), origin)
        places.append((origin, there))
    cache = {name: path for name, path in linker_cache().items() if name in names}
    places.append(("linker cache", cache))
    paths: dict[str, Path] = {}
    origins: dict[str, None] = {}
    for name in names:
        # cuBLAS and cuBLASLt call each other's insides: both from one place
        pair = [n for n in names if n.startswith("libcublas")] if name.startswith("libcublas") else [name]
        for origin, there in places:
            if all(n in there for n in pair):
                paths[name] = there[name]
                origins[origin] = None
                break
    return CudaLibraries(paths, tuple(n for n in names if n not in paths), " + ".join(origins))


def complete() -> tuple[int, ...]:
    """The major versions of CUDA whose runtime libraries are all here."""
    return tuple(major for major in COMMANDS if not find(sonames(major)).missing)


def _places() -> Iterator[tuple[str, list[Path]]]:
    wheels = [lib for root in _package_folders("nvidia") for lib in _library_folders(root)]
    yield "wheels", wheels
    yield "torch", [root / "lib" for root in _package_folders("torch")]
    for root in _toolkits():
        yield (
            "toolkit",
            [
                folder
                for folder in (root / "lib64", root / "targets/x86_64-linux/lib", root / "lib")
                if folder.is_dir() and folder.name != "stubs"
            ],
        )


def _package_folders(name: str) -> list[Path]:
    """A package's folders, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _library_folders(root: Path) -> list[Path]:
    """nvidia/cu13/lib, nvidia/cuda_runtime/lib, nvidia/cublas/lib, …"""
    try:
        return sorted(entry / "lib" for entry in root.iterdir() if (entry / "lib").is_dir())
    except OSError:
        return []


def _toolkits() -> list[Path]:
    found = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    local = Path("/usr/local")
    found += [local / "cuda", *sorted(local.glob("cuda-*"), reverse=True)]
    return list(dict.fromkeys(path for path in found if path.is_dir()))


@lru_cache(maxsize=1)
def linker_cache() -> dict[str, Path]:
    """SONAME → file of the 64-bit libraries that the dynamic linker knows."""
    if sys.platform != "linux":
        return {}
    for program in ("/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"):
        try:
            done = subprocess.run(
                [program, "-p"], check=False, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.SubprocessError):
            continue
        known: dict[str, Path] = {}
        for line in done.stdout.splitlines():
            match = re.match(r"\s*(\S+) \((.*)\) => (\S+)$", line)
            if match and ("x86-64" in match[2] or "AArch64" in match[2]):
                known.setdefault(match[1], Path(match[3]))
        return known
    return {}
