"""Own builds of llama.cpp: folders and archives in place of a pinned bundle, and packing them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from llcuda_ffi import bundles
from llcuda_ffi.bundles import InstalledBundle, own
from llcuda_ffi.cli.bundle import command
from llcuda_ffi.errors import AbiMismatch, BundleError, BundleNotFound, ChecksumError, DownloadError


@pytest.fixture
def build(tmp_path: Path, bundle_b7698: InstalledBundle) -> Path:
    """A build folder as CMake leaves it: bin/ with versioned files, links to them, and other things."""
    folder = tmp_path / "build"
    (folder / "bin").mkdir(parents=True)
    for name in bundle_b7698.libraries:
        if "cpu" in name and "x64" not in name and "haswell" not in name:
            continue
        if name.endswith(".so.0"):
            shutil.copyfile(bundle_b7698.path / name, folder / "bin" / f"{name}.0.1")
            (folder / "bin" / name).symlink_to(f"{name}.0.1")
            (folder / "bin" / name.removesuffix(".0")).symlink_to(name)
        else:
            shutil.copyfile(bundle_b7698.path / name, folder / "bin" / name)
    (folder / "bin" / "llama-cli").write_bytes(b"\x7fELF")
    (folder / "CMakeCache.txt").write_text("")
    return folder


def test_folder(cache: Path, build: Path, bundle_b7698: InstalledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build folder becomes a bundle of one file per SONAME, its ABI measured, once."""
    monkeypatch.setenv("LLCUDA_FFI_BUNDLE", str(build))
    bundle = bundles.ensure(progress=False)
    assert (bundle.name, bundle.profile, bundle.backend, bundle.verified) == ("build", "b7698", "cpu", False)
    assert {name: bundle_b7698.libraries[name] for name in bundle.libraries} == dict(bundle.libraries)
    assert len(bundle.libraries) == 5
    assert bundle.path.parent == cache / "bundles"
    assert not any(path.is_symlink() for path in bundle.path.iterdir())
    monkeypatch.setattr(own, "measure", None)
    assert bundles.ensure(progress=False) == bundle
    assert [found.path for found in bundles.installed()] == [bundle.path]


def test_changed_build_is_measured_again(cache: Path, build: Path) -> None:
    """After a rebuild the copy in the cache is not mistaken for it."""
    first = bundles.ensure(str(build), progress=False)
    os.utime(build / "bin" / "libllama.b7698.so.0.0.1", (1, 1))
    assert bundles.ensure(str(build), progress=False).path != first.path


def test_changed_copy_is_not_loaded(cache: Path, build: Path) -> None:
    """A library whose bytes changed after it was measured, with the same size, is refused at the next load."""
    bundle = bundles.ensure(str(build), progress=False)
    library = bundle.path / "libllama.b7698.so.0"
    data = bytearray(library.read_bytes())
    data[-1] ^= 1
    library.write_bytes(data)
    code = "import sys; from llcuda_ffi import bundles; from llcuda_ffi.native import load; load.load(bundles.ensure())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LLCUDA_FFI_BUNDLE": str(build)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("llcuda_ffi.errors.ChecksumError: libllama.b7698.so.0 of bundle build")
    assert f"bundle prune {bundle.path.name}" in last


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_corrupt_archive(cache: Path, build: Path, tmp_path: Path, kind: str) -> None:
    """It is called broken, whatever the compression: not a matter of the disk."""
    archive = tmp_path / f"out.tar.{kind}"
    with tarfile.open(archive, f"w:{kind}") as tar:  # type: ignore[call-overload]
        tar.add(build / "bin" / "libggml-base.so.0.0.1", "libggml-base.so")
    data = bytearray(archive.read_bytes())
    data[-3000] ^= 0x5A
    archive.write_bytes(data)
    with pytest.raises(BundleError, match=r"broken one") as caught:
        bundles.ensure(str(archive), progress=False)
    assert not isinstance(caught.value, DownloadError)


def test_pack_and_use(cache: Path, build: Path, tmp_path: Path) -> None:
    """`bundle pack` makes an archive with metadata and .sha256 that works as a bundle."""
    archive = tmp_path / "out.tar.xz"
    done = CliRunner().invoke(command, ["pack", str(build), "-o", str(archive)])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{archive}\n"
    digest, name = (tmp_path / "out.tar.xz.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(archive.read_bytes()).hexdigest(), "out.tar.xz")
    with tarfile.open(archive) as tar:
        member = tar.extractfile("metadata.json")
        assert member is not None
        facts = json.load(member)
    original = ["version", "llama_cpp_version", "compute_capabilities", "cuda_version", "build_date", "architectures"]
    assert list(facts)[:6] == original
    assert facts["profile"] == "b7698"
    assert facts["compute_capabilities"] == []
    bundle = bundles.ensure(str(archive), progress=False)
    assert bundle.profile == "b7698"
    assert {name: entry["sha256"] for name, entry in facts["libraries"].items()} == dict(bundle.libraries)
    bundle.verify()
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(ChecksumError, match=r"out\.tar\.xz\.sha256 says"):
        bundles.ensure(str(archive), progress=False)


def test_pack_refuses(cache: Path, build: Path, tmp_path: Path) -> None:
    """A folder without libllama, an unknown ending and a folder that cannot be written are one error each."""
    run = CliRunner().invoke
    (tmp_path / "empty").mkdir()
    done = run(command, ["pack", str(tmp_path / "empty"), "-o", str(tmp_path / "a.tar.xz")])
    assert isinstance(done.exception, BundleError)
    assert "there is no libllama" in str(done.exception)
    done = run(command, ["pack", str(build), "-o", str(tmp_path / "a.zip")])
    assert "name the archive" in str(done.exception)
    done = run(command, ["pack", str(build), "-o", str(tmp_path / "none" / "a.tar.xz")])
    assert "cannot be written" in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build", "empty"]


def test_unknown_abi(cache: Path, build: Path) -> None:
    """A build whose ABI is none of the profiles is refused with what differs, and not kept."""
    fake = build / "bin" / "libllama.b7698.so.0.0.1"
    shutil.copyfile(build / "bin" / "libggml-base.so.0.0.1", fake)
    data = bytearray(fake.read_bytes())
    assert data.count(b"libggml-base.so.0\0") == 1
    at = data.index(b"libggml-base.so.0\0")
    data[at : at + 18] = b"libllama.so.0\0\0\0\0\0"
    fake.write_bytes(data)
    with pytest.raises(AbiMismatch, match=r"cannot be used: .*lacks llama_"):
        bundles.ensure(str(build), progress=False)
    assert bundles.installed() == []


@pytest.mark.parametrize("missing", ["/no/such/folder", "./no-such.tar.xz"])
def test_missing(cache: Path, missing: str) -> None:
    """A path that is not there is named."""
    with pytest.raises(BundleNotFound, match="there is no bundle at"):
        bundles.ensure(missing, progress=False)


def test_folder_of_something_else(cache: Path, tmp_path: Path) -> None:
    """A folder without libraries is no bundle."""
    (tmp_path / "other").mkdir()
    with pytest.raises(BundleError, match="there is no libllama"):
        bundles.ensure(str(tmp_path / "other"), progress=False)


def test_own_build_generates(cache: Path, build: Path, smollm2: Path) -> None:
    """The library of a packed and unpacked own build loads behind the guard and reads a real model."""
    code = (
        "import sys; from llcuda_ffi import bundles; from llcuda_ffi.native import load; "
        "from llcuda_ffi.core.model import Model; library = load.load(bundles.ensure(sys.argv[1])); "
        "model = Model.load(sys.argv[2]); print(library.profile.name, model.vocab.tokenize('Hello world').tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(build), str(smollm2)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("b7698 [")
