"""Taking the libraries out of an archive: filtered, bounded, one file per SONAME."""

from __future__ import annotations

import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from ..errors import BundleError, ChecksumError, UnsafeArchive
from ..fetch.integrity import BLOCK, file_sha256
from . import elf

# libllama.so, libllama.v0.5.0.so, libllama-e4014eb7.so.0.7.0 (names in wheels carry a hash), libggml-cpu-zen4.so.0.9.5
# and the like, and the OpenMP runtime, which some bring with them. libllama-common and its like belong to the tools.
LIBRARY = re.compile(r"lib(llama|ggml|mtmd)[\w.+-]*\.so[.\d]*|libgomp(-[0-9a-f]{8})?\.so\.1[.\d]*")
NOT_OURS = re.compile(r"libllama-(?![0-9a-f]{8}\.so)")

# The largest library known is 375 MB, the largest archive unpacks to 900 MB.
MEMBER_LIMIT = 2 << 30
TOTAL_LIMIT = 8 << 30
MEMBERS_LIMIT = 20_000


def is_library(name: str) -> bool:
    """Whether a file of this name is one of the libraries that a bundle is made of."""
    return LIBRARY.fullmatch(name) is not None and NOT_OURS.match(name) is None


def library_name(names: elf.ElfNames, file_name: str) -> str:
    """The name under which the loader looks for a library: its SONAME; that of a plugin ends with .so."""
    return names.soname or file_name.partition(".so.")[0].removesuffix(".so") + ".so"


@dataclass(frozen=True)
class Member:
    """A plain file in an archive; `open` gives its content."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def _checked(name: str, size: int, archive: str, link: str | None = None) -> None:
    """Refuse a member that would leave its folder, by its name or as a link to `link`, or is too large."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise UnsafeArchive(f"{archive} has the member {name!r}, which would be written outside its folder")
    if link is not None:
        reached = posixpath.normpath(link)
        if reached == ".." or reached.startswith(("/", "../")):
            raise UnsafeArchive(f"{archive} has the link {name!r} to {link!r}, outside its folder")
    if size > MEMBER_LIMIT:
        raise UnsafeArchive(f"{archive} has the member {name!r} of {size:,} bytes: larger than any library")


def _tar_members(archive: Path) -> Iterator[Member]:
    """The files of a tar archive."""
    with tarfile.open(archive, "r:*") as stream:
        for member in stream:
            link = None
            if member.issym():
                link = posixpath.join(posixpath.dirname(member.name), member.linkname)
            elif member.islnk():
                link = member.linkname
            _checked(member.name, member.size, archive.name, link)
            if not (member.isfile() or member.isdir() or link is not None):
                raise UnsafeArchive(f"{archive.name} has the member {member.name!r}, which is a device or pipe")
            yield Member(member.name, member.size if member.isfile() else 0, partial(_open_tar, stream, member))
        # A compressed stream's own checksum is compared when its last byte is read, behind the last member.
        total = 0
        while stream.fileobj is not None and stream.fileobj.read(BLOCK):
            total += BLOCK
            if total > TOTAL_LIMIT:
                raise UnsafeArchive(f"{archive.name} goes on behind its end: not unpacked")


def _open_tar(stream: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
    return stream.extractfile(member) if member.isfile() else None


def _zip_members(archive: Path) -> Iterator[Member]:
    """The files of a wheel, which is a zip archive."""
    with zipfile.ZipFile(archive) as stream:
        for info in stream.infolist():
            _checked(info.filename, info.file_size, archive.name)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeArchive(f"{archive.name} has the member {info.filename!r}, which is a link or device")
            yield Member(info.filename, info.file_size, partial(_open_zip, stream, info))


def _open_zip(stream: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes] | None:
    return None if info.is_dir() else stream.open(info)


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def extract(archive: Path, place: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """Take an archive's libraries into a folder, each under its SONAME.

    Args:
        archive: A tar file, compressed or not, or a wheel. It may hold the libraries in any folder and several
            times over.
        place: An existing folder for them.
        wanted: File name → sha256 of those to take; empty takes all.

    Returns:
        File name → sha256 of what was taken.

    Raises:
        UnsafeArchive: A member is not what a bundle may hold.
        ChecksumError: A library is missing or is not the pinned one.
        BundleError: It is no archive, or a broken one.
    """
    try:
        taken = _extract(archive, place, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk; what gzip and bz2 find broken has no error number
        why = str(error).partition("\n")[0]  # tarfile tells what each of its readers said
        raise BundleError(f"{archive.name} is no archive, or a broken one ({why}): nothing of it was used") from error
    missing = sorted(set(wanted) - set(taken))
    if missing:
        raise ChecksumError(f"{archive.name} lacks {', '.join(missing)}: it is not the archive that was pinned")
    if not taken:
        raise BundleError(f"{archive.name} holds no llama.cpp library")
    return taken


def _extract(archive: Path, place: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    taken: dict[str, str] = {}
    total = 0
    for count, member in enumerate(_zip_members(archive) if _is_zip(archive) else _tar_members(archive)):
        total += member.size
        if total > TOTAL_LIMIT or count > MEMBERS_LIMIT:
            raise UnsafeArchive(f"{archive.name} unpacks to more than a bundle can be: not unpacked")
        name = posixpath.basename(member.name)
        if not is_library(name) or (source := member.open()) is None:
            continue
        fresh = place / f".{count}.new"
        with source, fresh.open("xb") as out:
            while block := source.read(BLOCK):
                out.write(block)
        _keep(fresh, name, place, wanted, taken, archive.name)
    return taken


def _keep(fresh: Path, name: str, place: Path, wanted: Mapping[str, str], taken: dict[str, str], archive: str) -> None:
    """Give an unpacked library its SONAME, unless it is unwanted or another copy of one that is there."""
    soname = library_name(elf.read_names(fresh, f"{name} in {archive}"), name)
    if not is_library(soname) or (wanted and soname not in wanted):
        fresh.unlink()
        return
    digest = file_sha256(fresh)
    if soname in wanted and digest != wanted[soname]:
        raise ChecksumError(
            f"{name} in {archive} has sha256 {digest}, expected {wanted[soname]}: nothing of the archive was used"
        )
    if soname in taken:
        if taken[soname] != digest:
            raise BundleError(f"{archive} holds two different libraries that are both named {soname}")
        fresh.unlink()
        return
    fresh.chmod(0o644)
    os.replace(fresh, place / soname)
    taken[soname] = digest


def collect(folder: Path) -> dict[str, Path]:
    """The libraries below a folder (a llama.cpp build, an unpacked bundle), one path per SONAME."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("lib*.so*"), key=lambda path: (len(path.parts), path)):
        if not is_library(path.name) or not path.is_file():
            continue
        soname = library_name(elf.read_names(path), path.name)
        if soname not in found:
            found[soname] = path.resolve()
    return found
