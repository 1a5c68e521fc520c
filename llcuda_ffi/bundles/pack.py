"""Packing an own build of llama.cpp into an archive that any machine can use as a bundle."""

from __future__ import annotations

import datetime
import io
import json
import platform
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..fetch.integrity import file_sha256
from ..hardware.fatbin import read_fatbin
from ..regular_file import replaceable
from . import elf, own

METADATA = "metadata.json"
COMPRESSIONS = {".xz": "xz", ".gz": "gz", ".tgz": "gz", ".tar": ""}
ARCHITECTURES = {
    50: ("Maxwell", ["GeForce 940M", "GTX 750 Ti"]),
    52: ("Maxwell", ["GTX 970", "GTX 980"]),
    60: ("Pascal", ["Tesla P100"]),
    61: ("Pascal", ["GTX 1060", "GTX 1080", "Tesla P4"]),
    70: ("Volta", ["Tesla V100"]),
    75: ("Turing", ["Tesla T4", "RTX 2080"]),
    80: ("Ampere", ["A100"]),
    86: ("Ampere", ["RTX 3090", "A10", "A40"]),
    89: ("Ada Lovelace", ["RTX 4090", "L4", "L40S"]),
    90: ("Hopper", ["H100", "H200"]),
    100: ("Blackwell", ["B200"]),
    120: ("Blackwell", ["RTX 5090"]),
    121: ("Blackwell", ["GB10"]),
}


def pack(build: Path, output: Path) -> dict[str, Any]:
    """Collect a build's libraries, measure their ABI, write the archive, its metadata and its .sha256.

    Args:
        build: A llama.cpp build folder, or any folder with the libraries.
        output: A .tar.xz, .tar.gz, .tgz or .tar file.

    Returns:
        The metadata.

    Raises:
        BundleError: There is no libllama in the folder.
        AbiMismatch: The build's ABI is none that this package knows.
    """
    if output.suffix not in COMPRESSIONS:
        raise BundleError(f"{output.name}: name the archive .tar.xz, .tar.gz, .tgz or .tar")
    replaceable(output)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".pack-") as temporary:
        place = Path(temporary) / "lib"
        place.mkdir()
        libraries = own.copy_libraries(build, place)
        measured = own.describe(output.name, place, place, libraries, source=str(build))
        facts = _metadata(place, measured.profile, measured.backend, libraries)
        fresh = Path(temporary) / "archive"
        # The names are computed, so the archive's compression is too.
        with tarfile.open(fresh, f"w:{COMPRESSIONS[output.suffix]}") as archive:  # type: ignore[call-overload]
            text = (json.dumps(facts, indent=1) + "\n").encode()
            about = tarfile.TarInfo(METADATA)
            about.size = len(text)
            archive.addfile(about, io.BytesIO(text))
            for name in sorted(libraries):
                with (place / name).open("rb") as library:
                    member = tarfile.TarInfo(f"lib/{name}")
                    member.size = (place / name).stat().st_size
                    member.mode = 0o755
                    archive.addfile(member, library)
        digest = file_sha256(fresh)
        fresh.replace(output)
    output.with_name(output.name + ".sha256").write_text(f"{digest}  {output.name}\n", encoding="utf-8")
    return facts


def _cuda(place: Path) -> tuple[list[int], list[int], str | None, str | None]:
    """Architectures with machine code and with PTX, the toolkit's major version, the version of the PTX language."""
    library = next(place.glob("libggml-cuda*.so*"))
    held = read_fatbin(library)
    runtimes = [name for name in elf.read_names(library).needed if name.startswith("libcudart.so.")]
    cuda = runtimes[0].removeprefix("libcudart.so.") if runtimes else None
    isa = f"{held.ptx_isa[0]}.{held.ptx_isa[1]}" if held.ptx_isa else None
    return sorted(held.sass), sorted(held.ptx), cuda, isa


def _metadata(place: Path, profile: str, backend: str, libraries: dict[str, str]) -> dict[str, Any]:
    sass, ptx, cuda, isa = _cuda(place) if backend == "cuda" else ([], [], None, None)
    return {
        "version": version("llcuda-ffi"),
        "llama_cpp_version": profile,
        "compute_capabilities": [f"{number // 10}.{number % 10}" for number in sass],
        "cuda_version": cuda,
        "build_date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "architectures": [
            {
                "sm": str(number),
                "name": ARCHITECTURES.get(number, ("unknown", []))[0],
                "gpus": ARCHITECTURES.get(number, ("", []))[1],
            }
            for number in sass
        ],
        "ptx": ptx,
        "ptx_isa": isa,
        "profile": profile,
        "backend": backend,
        "platform": f"{platform.system().lower()}-{platform.machine()}",
        "libraries": {
            name: {"sha256": digest, "size": (place / name).stat().st_size}
            for name, digest in sorted(libraries.items())
        },
    }
