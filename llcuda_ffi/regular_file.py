"""Files that a user names are used where they are files.

A pipe or a device could hold a read for ever, and what is put in its place by a rename would be the end of it.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InvalidRequest


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read.

    Raises:
        OSError: as `open`; also where it is a pipe, a device or a socket.
    """
    file = open(path, "rb", opener=_open)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return file


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer is opened at once


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new path beside `path`, whose file takes its place where the block ends, and is removed where that raises.

    Raises:
        InvalidRequest: something that is no file lies at `path`.
    """
    target = replaceable(path)
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)


def replaceable(path: str | os.PathLike[str]) -> Path:
    """A path at which a file may be put by a rename.

    Raises:
        InvalidRequest: a folder, a pipe or a device is there.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise InvalidRequest(f"{target} is no file that may be replaced: give another name")
    return target
