"""The unfinished file of a download: found again by the next run, never shared by two live processes.

A partial file is named after what it will be, and the process that writes it holds a kernel lock on it. A
process that died holds none, so the next one takes its file over and goes on where it ended.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .cache import disk_error, folder, sweep

try:
    import fcntl
except ImportError:  # a platform without flock resumes nothing and is still correct
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".partial"


def take(path: Path) -> BinaryIO | None:
    """Open a partial file for going on, if no live process writes it."""
    if fcntl is None:
        return None
    try:
        file = path.open("r+b")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have finished and renamed it between our open and our lock.
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except OSError:
        pass
    file.close()
    return None


@contextmanager
def partial_file(place: Path, key: str) -> Iterator[tuple[BinaryIO, Path]]:
    """Open the partial file for `key` below `place`: one that a dead process left, or a new one.

    It is kept when the block is left by an exception, for the next run to go on with.
    """
    folder(place)
    sweep(place, ".fetch-")
    left = sorted(place.glob(f".fetch-{key}.*{SUFFIX}"), key=lambda path: -path.lstat().st_size)
    for path in left:
        file = take(path)
        if file is not None:
            break
    else:
        file, path = _new(place, key)
    with file:
        yield file, path


def _new(place: Path, key: str) -> tuple[BinaryIO, Path]:
    while True:
        path = place / f".fetch-{key}.{uuid.uuid4().hex[:12]}{SUFFIX}"
        try:
            file = path.open("x+b")
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file, path
            except BlockingIOError:  # another process found it before it was locked, and goes on with it
                file.close()
        except OSError as error:
            raise disk_error(error, path) from error
