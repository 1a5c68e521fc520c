"""Taking libraries out of archives, good and evil; the libraries are those of the real bundle."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llcuda_ffi.bundles import InstalledBundle, elf, unpack
from llcuda_ffi.errors import BundleError, ChecksumError, UnsafeArchive

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


def write(path: Path, members: list[Member], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def base(bundle: InstalledBundle) -> bytes:
    """A real library."""
    name = next(name for name in bundle.libraries if name.startswith("libggml-base"))
    return (bundle.path / name).read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def test_one_file_per_soname(tmp_path: Path, place: Path, base: bytes) -> None:
    """Three full copies under three names, in any folder, become one file under its SONAME."""
    names = ["bin/libggml-base.so", "top/lib/libggml-base.so.0", "top/lib/libggml-base.so.0.9.5"]
    archive = write(tmp_path / "a.tar.gz", [member(name, base) for name in names])
    taken = unpack.extract(archive, place, {})
    assert [path.name for path in place.iterdir()] == list(taken)
    assert len(taken) == 1
    assert (place / next(iter(taken))).read_bytes() == base


def test_only_libraries_are_taken(tmp_path: Path, place: Path, base: bytes) -> None:
    """Programs, add-ons, the tools' library and links inside the archive are left where they are."""
    others = [
        "README.md",
        "bin/llama-server",
        "lib/llama-addon.node",
        "lib/libllama-common.so",
        "lib/libllama-bench-impl.so",
        "lib/libc.so.6",
    ]
    archive = write(
        tmp_path / "a.tar.gz",
        [
            *(member(name, b"x") for name in others),
            member("lib/libggml-base.so", base),
            member("lib/libggml-base.so.0", kind=tarfile.SYMTYPE, link="libggml-base.so"),
            member("lib/libggml-base.so.1", kind=tarfile.LNKTYPE, link="lib/libggml-base.so"),
        ],
    )
    unpack.extract(archive, place, {})
    assert len(list(place.iterdir())) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../libggml-base.so", b"x"), "outside its folder"),
        (member("lib/../../libggml-base.so", b"x"), "outside its folder"),
        (member("/tmp/libggml-base.so", b"x"), "outside its folder"),
        (member("..\\libggml-base.so", b"x"), "outside its folder"),
        (member("C:/libggml-base.so", b"x"), "outside its folder"),
        (member("lib/libllama.so", kind=tarfile.SYMTYPE, link="/usr/lib/libllama.so"), "outside its folder"),
        (member("lib/libllama.so", kind=tarfile.SYMTYPE, link="../../libllama.so"), "outside its folder"),
        (member("lib/libllama.so", kind=tarfile.LNKTYPE, link="../libllama.so"), "outside its folder"),
        (member("lib/libllama.so", kind=tarfile.CHRTYPE), "device or pipe"),
        (member("lib/libllama.so", kind=tarfile.BLKTYPE), "device or pipe"),
        (member("lib/libllama.so", kind=tarfile.FIFOTYPE), "device or pipe"),
        (member("README", kind=tarfile.FIFOTYPE), "device or pipe"),
    ],
)
def test_evil_members(tmp_path: Path, place: Path, base: bytes, bad: Member, message: str) -> None:
    """One member that would leave its folder, or is no plain file, refuses the whole archive."""
    archive = write(tmp_path / "a.tar.gz", [bad, member("lib/libggml-base.so", base)])
    with pytest.raises(UnsafeArchive, match=message):
        unpack.extract(archive, place, {})
    assert list(place.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "place"]


def test_oversized_member(tmp_path: Path, place: Path) -> None:
    """A member that says it is larger than any library is refused before a byte of it is written."""
    info = tarfile.TarInfo("lib/libllama.so")
    info.size = unpack.MEMBER_LIMIT + 1
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(UnsafeArchive, match="larger than any library"):
        unpack.extract(path, place, {})


def test_archive_that_unpacks_to_too_much(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of all members is bounded, also of those that are not taken."""
    monkeypatch.setattr(unpack, "TOTAL_LIMIT", 10_000)
    archive = write(tmp_path / "a.tar.gz", [member(f"{number}", b"\0" * 4000) for number in range(3)])
    with pytest.raises(UnsafeArchive, match="more than a bundle can be"):
        unpack.extract(archive, place, {})


def write_wheel(path: Path, members: dict[str, bytes], mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def test_wheel(tmp_path: Path, place: Path, base: bytes) -> None:
    """A wheel is unpacked by the rules of the others: libraries only, whatever its folders are called."""
    members = {"x/lib/libggml-base.so.0": base, "x/__init__.py": b"", "x/bin/llama-server": b"\x7fELF", "x.libs/": b""}
    taken = unpack.extract(write_wheel(tmp_path / "x.whl", members), place, {})
    assert [path.name for path in place.iterdir()] == list(taken)
    assert len(taken) == 1


@pytest.mark.parametrize(
    ("name", "mode"),
    [("../libggml-base.so", 0o100644), ("/tmp/libggml-base.so", 0o100644), ("libggml-base.so", 0o120777)],
)
def test_evil_wheel(tmp_path: Path, place: Path, base: bytes, name: str, mode: int) -> None:
    """A member that leaves the folder, or is a link, refuses the wheel."""
    with pytest.raises(UnsafeArchive):
        unpack.extract(write_wheel(tmp_path / "x.whl", {name: base}, mode), place, {})
    assert list(place.iterdir()) == []


def test_damaged_wheel(tmp_path: Path, place: Path, base: bytes) -> None:
    """A wheel with changed bytes is called broken."""
    path = write_wheel(tmp_path / "x.whl", {"libggml-base.so": base})
    _flip(path)
    with pytest.raises(BundleError, match=r"x\.whl is no archive, or a broken one"):
        unpack.extract(path, place, {})


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("libllama.so.0", True),
        ("libllama-e4014eb7.so.0.7.0", True),
        ("libggml-cuda-7c0b4d3a.so", True),
        ("libmtmd.so.0", True),
        ("libgomp.so.1", True),
        ("libllama-common.so.0", False),
        ("libllama-server-impl.so", False),
        ("libgomp-plugin-nvptx.so.1", False),
        ("libc.so.6", False),
    ],
)
def test_which_libraries_are_ours(name: str, ours: bool) -> None:
    """llama.cpp's own, with and without the hash that wheels put into names, and the OpenMP runtime."""
    assert unpack.is_library(name) == ours


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = os.urandom(64)
    path.write_bytes(data)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.write_bytes(b"not an archive")])
def test_damaged_archive(tmp_path: Path, place: Path, base: bytes, mode: str, damage: Callable[[Path], None]) -> None:
    """A cut, damaged or foreign file is one error of ours, whatever the compression."""
    archive = write(tmp_path / "a.tar", [member("lib/libggml-base.so", base)], mode)
    damage(archive)
    # an uncompressed archive notices only by the pinned hash
    wanted = {"libggml-base.so": "0" * 64} if mode == "w" and damage is _flip else {}
    with pytest.raises((BundleError, ChecksumError), match=r"a\.tar"):
        unpack.extract(archive, place, wanted)


def test_tampered_library(tmp_path: Path, place: Path, base: bytes) -> None:
    """A library whose hash is not the pinned one is refused."""
    archive = write(tmp_path / "a.tar.gz", [member("lib/libggml-base.so", base)])
    taken = unpack.extract(archive, place, {})
    (name,) = taken
    with pytest.raises(ChecksumError, match="expected 0000"):
        unpack.extract(archive, place, {name: "0" * 64})


def test_missing_library(tmp_path: Path, place: Path, base: bytes) -> None:
    """An archive without a pinned library is refused, and the library named."""
    archive = write(tmp_path / "a.tar.gz", [member("lib/libggml-base.so", base)])
    with pytest.raises(ChecksumError, match=r"lacks libllama\.so"):
        unpack.extract(archive, place, {"libllama.so": "0" * 64})


def test_two_libraries_of_one_name(tmp_path: Path, place: Path, base: bytes) -> None:
    """Two different libraries that call themselves the same are refused: which would be loaded?"""
    archive = write(
        tmp_path / "a.tar.gz",
        [member("a/libggml-base.so", base), member("b/libggml-base.so", base + b"\0")],
    )
    with pytest.raises(BundleError, match="two different libraries"):
        unpack.extract(archive, place, {})


def test_no_library(tmp_path: Path, place: Path) -> None:
    """An archive of something else says so."""
    archive = write(tmp_path / "a.tar.gz", [member("README", b"x")])
    with pytest.raises(BundleError, match=r"holds no llama\.cpp library"):
        unpack.extract(archive, place, {})


def test_library_that_is_no_elf(tmp_path: Path, place: Path) -> None:
    """A file with a library's name and other content is refused."""
    archive = write(tmp_path / "a.tar.gz", [member("lib/libllama.so", b"\x7fELF\x02\x01" + b"\xff" * 100)])
    with pytest.raises(BundleError, match="no ELF shared library"):
        unpack.extract(archive, place, {})


def test_elf_names_are_what_the_loader_reads(bundle: InstalledBundle) -> None:
    """SONAME and needed libraries agree with binutils where it is installed, and with the files' names."""
    for name in bundle.libraries:
        names = elf.read_names(bundle.path / name)
        assert names.soname in (None, name)
        assert "libc.so.6" in names.needed
        try:
            said = subprocess.run(
                ["readelf", "-dW", bundle.path / name], capture_output=True, text=True, check=True
            ).stdout
        except FileNotFoundError:
            continue
        for needed in names.needed:
            assert f"Shared library: [{needed}]" in said
