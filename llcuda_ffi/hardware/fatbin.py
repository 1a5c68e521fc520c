"""Which GPUs a CUDA library has code for: the headers of its fat binaries, without loading it.

The section .nv_fatbin is a row of containers, each a row of entries: machine code (SASS) of one architecture, or PTX,
which the driver compiles if it knows the version of its language (the PTX ISA). Only the headers are read, so a library
of hundreds of MB takes milliseconds.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidRequest

_MAGIC = 0xBA55ED50
_PTX, _ELF = 1, 2
_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ")
_ENTRY_MIN = 32  # kind … architecture
_MOST = 1_000_000  # entries; more is a broken file


@dataclass(frozen=True)
class Fatbin:
    """What a library holds.

    Attributes:
        sass: architectures with machine code: 75, 86, 90.
        ptx: architectures of its PTX.
        ptx_isa: the highest version of the PTX language in it, e.g. (8, 4); None without PTX.
        entries: how many entries were read.
    """

    sass: tuple[int, ...] = ()
    ptx: tuple[int, ...] = ()
    ptx_isa: tuple[int, int] | None = None
    entries: int = 0


def read_fatbin(path: str | os.PathLike[str]) -> Fatbin:
    """Read the fat binary headers of an ELF library; one without GPU code gives an empty Fatbin.

    Raises:
        InvalidRequest: not an ELF file, or a broken one.
    """
    place = Path(path)
    sass: set[int] = set()
    ptx: set[int] = set()
    isa: tuple[int, int] | None = None
    count = 0
    try:
        with place.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for begin, end in _sections(data):
                for kind, arch, version in _entries(data, begin, end):
                    count += 1
                    if kind == _ELF:
                        sass.add(arch)
                    elif kind == _PTX:
                        ptx.add(arch)
                        isa = version if isa is None else max(isa, version)
                    if count > _MOST:
                        raise ValueError("it has too many fat binary entries")
    except (ValueError, OverflowError, struct.error) as error:  # OverflowError: an offset beyond 2^63
        raise InvalidRequest(f"{place} is no ELF library, or a broken one: {error}") from error
    return Fatbin(tuple(sorted(sass)), tuple(sorted(ptx)), isa, count)


def _sections(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Begin and end of every section named .nv_fatbin (also __nv_relfatbin, of relocatable code)."""
    if data[:4] != b"\x7fELF":
        raise ValueError("no ELF header")
    if data[5] != 1:
        raise ValueError("it is big-endian, CUDA's are not")
    wide = data[4] == 2
    # e_shoff, then e_shentsize, e_shnum, e_shstrndx
    (table,) = struct.unpack_from("<Q" if wide else "<I", data, 40 if wide else 32)
    size, number, names = struct.unpack_from("<HHH", data, 58 if wide else 46)
    if not table or size < (64 if wide else 40):
        return

    def header(i: int) -> tuple[int, int, int]:
        """sh_name, sh_offset, sh_size"""
        at = table + i * size
        if wide:
            name, _type, _flags, _address, offset, length = struct.unpack_from("<IIQQQQ", data, at)
        else:
            name, _type, _flags, _address, offset, length = struct.unpack_from("<IIIIII", data, at)
        return name, offset, length

    _, strings, strings_size = header(names)
    for i in range(number):
        name, offset, length = header(i)
        at = strings + name
        if name >= strings_size:
            continue
        end = data.find(b"\0", at, strings + strings_size)
        if data[at:end] in (b".nv_fatbin", b"__nv_relfatbin"):
            if offset + length > len(data):
                raise ValueError("its fat binary section ends after the file")
            yield offset, offset + length


def _entries(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Kind, architecture and version (of PTX: the ISA) of each entry between two offsets.

    Compressed payloads make no difference: the size in an entry's header is what lies in the file.
    """
    while at + _CONTAINER.size <= end:
        magic, _version, header, size = _CONTAINER.unpack_from(data, at)
        if magic != _MAGIC:
            at += 8  # padding between containers
            continue
        if header < _CONTAINER.size or at + header + size > end:
            raise ValueError(f"a fat binary at {at} ends after its section")
        entry, stop = at + header, at + header + size
        while entry + _ENTRY_MIN <= stop:
            kind, _, entry_header, payload = _ENTRY.unpack_from(data, entry)
            if entry_header < _ENTRY_MIN:
                raise ValueError(f"a fat binary entry at {entry} has a header of {entry_header} bytes")
            minor, major, arch = struct.unpack_from("<HHI", data, entry + 24)
            yield kind, arch, (major, minor)
            entry += entry_header + payload
        at = stop
