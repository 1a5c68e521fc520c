"""The names that an ELF shared library carries: its own (SONAME), those it needs, and where they are looked for."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB, DT_SONAME, DT_RPATH, DT_RUNPATH = 0, 1, 5, 14, 15, 29


def plain_name(file_name: str) -> str:
    """A library's name without the hash that wheels put into it: libllama-e4014eb7.so.0.7.0 is libllama.so.0.7.0."""
    return re.sub(r"-[0-9a-f]{8}(?=\.so)", "", file_name)


@dataclass(frozen=True)
class ElfNames:
    """SONAME (None where the library has none), the SONAMEs of the libraries it needs, and its search path for them."""

    soname: str | None
    needed: tuple[str, ...]
    search: tuple[str, ...] = ()

    @property
    def searches_current_folder(self) -> bool:
        """Whether the dynamic linker would look into the current folder: it does for an empty or relative entry."""
        return any(not entry.startswith(("/", "$ORIGIN", "${ORIGIN}")) for entry in self.search)


def read_names(path: Path, what: str | None = None) -> ElfNames:
    """Read the dynamic section of a 64-bit ELF file; `what` names it in messages.

    Raises:
        BundleError: The file is no shared library for a 64-bit Linux, or is cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)
    except (ValueError, IndexError, OverflowError, struct.error) as error:
        raise BundleError(f"{what or path.name} is no ELF shared library, or a broken one: {error}") from error


def _read(data: mmap.mmap) -> ElfNames:
    if data[:4] != b"\x7fELF" or data[4] != 2 or data[5] not in (1, 2):
        raise ValueError("not a 64-bit ELF file")
    order = "<" if data[5] == 1 else ">"
    (table,) = struct.unpack_from(order + "Q", data, 32)
    entry_size, entries = struct.unpack_from(order + "HH", data, 54)
    segments: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    for number in range(entries):
        kind, _flags, offset, address, _physical, size = struct.unpack_from(
            order + "IIQQQQ", data, table + number * entry_size
        )
        if kind == PT_LOAD:
            segments.append((address, offset, size))
        elif kind == PT_DYNAMIC:
            dynamic = (offset, size)
    if dynamic is None:
        raise ValueError("no dynamic section")
    tags: list[tuple[int, int]] = []
    for offset in range(dynamic[0], min(dynamic[0] + dynamic[1], len(data)), 16):
        tag, value = struct.unpack_from(order + "QQ", data, offset)
        if tag == DT_NULL:
            break
        tags.append((tag, value))
    address = next((value for tag, value in tags if tag == DT_STRTAB), None)
    where = next(
        (offset + address - start for start, offset, size in segments if address and start <= address < start + size),
        None,
    )
    if where is None:
        raise ValueError("no string table")

    def text(at: int) -> str:
        end = data.find(b"\0", where + at)
        if not where <= where + at < len(data) or end < 0:
            raise ValueError("a name lies outside the file")
        return data[where + at : end].decode("utf-8", "replace")

    soname = next((text(value) for tag, value in tags if tag == DT_SONAME), None)
    search = [text(value) for tag, value in tags if tag in (DT_RPATH, DT_RUNPATH)]
    return ElfNames(
        soname,
        tuple(text(value) for tag, value in tags if tag == DT_NEEDED),
        tuple(entry for path in search if path for entry in path.split(":")),
    )
