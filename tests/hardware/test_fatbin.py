"""The reader of fat binary headers, on files written here, and the pins' facts about the real ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llcuda_ffi import bundles as bundle
from llcuda_ffi.bundles import pins
from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.hardware.fatbin import Fatbin, read_fatbin

PTX, SASS = 1, 2


def entry(
    kind: int, arch: int, version: tuple[int, int] = (1, 7), *, header: int = 64, payload: bytes = b"x" * 40
) -> bytes:
    """A header as the CUDA tools write it; `payload` may be compressed, its size is what lies in the file."""
    head = (
        struct.pack("<HHIQ", kind, 0x101, header, len(payload))
        + bytes(8)
        + struct.pack("<HHI", version[1], version[0], arch)
    )
    return head.ljust(header, b"\0") + payload


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def elf(section: bytes, *, name: bytes = b".nv_fatbin", wide: bool = True) -> bytes:
    """An ELF file with the section and the table of section names, nothing else."""
    names = b"\0" + name + b"\0.shstrtab\0"
    start = 64
    strings = start + len(section)
    table = -(-(strings + len(names)) // 8) * 8
    rows = [(0, 0, 0), (1, start, len(section)), (len(name) + 2, strings, len(names))]
    if wide:
        head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
            "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2
        )
        headers = b"".join(struct.pack("<IIQQQQIIQQ", n, 1, 0, 0, o, s, 0, 0, 8, 0) for n, o, s in rows)
    else:
        head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + struct.pack(
            "<HHIIIIIHHHHHH", 3, 3, 1, 0, 0, table, 0, 52, 0, 0, 40, 3, 2
        )
        headers = b"".join(struct.pack("<IIIIIIIIII", n, 1, 0, 0, o, s, 0, 0, 8, 0) for n, o, s in rows)
    return (head.ljust(64, b"\0") + section + names).ljust(table, b"\0") + headers


@pytest.mark.parametrize("wide", [True, False])
def test_architectures_and_ptx_version(wide: bool, tmp_path: Path) -> None:
    """SASS and PTX of several containers with padding between them, headers of several sizes, 32 and 64 bits."""
    section = (
        container(entry(SASS, 86), entry(PTX, 80, (8, 4), header=80, payload=b""), entry(SASS, 120, payload=b"z" * 999))
        + bytes(24)
        + container(entry(PTX, 90, (9, 1)), entry(SASS, 86, header=32))
        + bytes(8)
    )
    path = tmp_path / "lib.so"
    path.write_bytes(elf(section, wide=wide))
    assert read_fatbin(path) == Fatbin((86, 120), (80, 90), (9, 1), 5)


def test_relocatable_code(tmp_path: Path) -> None:
    """The section of relocatable device code counts as well."""
    path = tmp_path / "lib.so"
    path.write_bytes(elf(container(entry(SASS, 75)), name=b"__nv_relfatbin"))
    assert read_fatbin(path).sass == (75,)


def test_a_library_without_gpu_code() -> None:
    """A real CPU library gives an empty result."""
    installed = bundle.ensure("v0.5.0-cpu", progress=False)
    name = next(name for name in installed.libraries if name.startswith("libllama"))
    assert read_fatbin(installed.path / name) == Fatbin()


def test_only_headers_are_read(tmp_path: Path) -> None:
    """Payloads are skipped: one of 1 GiB, a hole in the file, costs nothing."""
    big = 1 << 30
    head = entry(PTX, 80, (8, 0), payload=b"")
    head = head[:8] + struct.pack("<Q", big) + head[16:]
    second = entry(SASS, 90)
    body = len(head) + big + len(second)
    whole = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, body)
    small = elf(b"")
    names_at = struct.unpack_from("<Q", small, 40)[0]
    tail = bytearray(small[64:])
    shift = len(whole) + body
    path = tmp_path / "lib.so"
    with path.open("wb") as file:
        start = bytearray(small[:64])
        struct.pack_into("<Q", start, 40, names_at + shift)
        file.write(start)
        file.write(whole + head)
        file.seek(64 + shift - len(second))
        file.write(second)
        at = names_at - 64
        struct.pack_into("<Q", tail, at + 64 + 32, shift)  # the section's size
        offset = struct.unpack_from("<Q", tail, at + 128 + 24)[0]
        struct.pack_into("<Q", tail, at + 128 + 24, offset + shift)  # where the names are now
        file.write(tail)
    assert read_fatbin(path) == Fatbin((90,), (80,), (8, 0), 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a library",
        b"\x7fELF\x02\x01",
        elf(container(entry(SASS, 86)))[:200],
        elf(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 40)),
        elf(container(struct.pack("<HHIQ", 2, 0, 0, 0) + bytes(32))),
        b"\x7fELF\x02\x02".ljust(64, b"\0"),
    ],
    ids=["empty", "text", "cut in the header", "cut", "endless container", "header of 0 bytes", "big-endian"],
)
def test_broken_files(data: bytes, tmp_path: Path) -> None:
    """A file that is no library, or a damaged one, is an InvalidRequest and never an endless loop."""
    path = tmp_path / "lib.so"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=r"lib\.so"):
        read_fatbin(path)


@given(st.binary(max_size=300), st.integers(0, 400))
@example(b"\x80", 47)  # a section table beyond 2^63
def test_random_damage(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    """Any bytes over any place give a result or an InvalidRequest."""
    data = bytearray(elf(container(entry(SASS, 86), entry(PTX, 80, (8, 4)))))
    data[at : at + len(noise)] = noise
    path = tmp_path_factory.mktemp("fatbin") / "lib.so"
    path.write_bytes(data)
    try:
        read_fatbin(path)
    except InvalidRequest:
        pass


def test_pins_state_what_the_headers_say() -> None:
    """Facts read from the real libraries (their headers, 858 and 1001 entries) stand in pins.toml."""
    facts = {p.name: (p.sass, p.ptx, p.ptx_isa) for p in pins.all_pins() if p.backend == "cuda"}
    assert facts["v0.5.0-cuda13"] == ((86, 89, 120, 121), (75, 80, 90), "9.1")
    assert facts["v0.5.0-cuda12"] == ((86,), (50, 61, 70, 75, 80), "8.4")
