"""One process at a time per cache entry: a lock file beside the entry, never unlinked.

The lock only saves work. Whoever publishes does it by an atomic rename of a verified tree, so that a broken
or missing lock costs a second download and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .cache import disk_error, folder
from .progress import note


@contextmanager
def entry_lock(entry: Path, doing: str, progress: bool | None = None) -> Iterator[None]:
    """Hold the lock of a cache entry; say so when another live process holds it.

    Args:
        entry: The file or folder that is about to be made.
        doing: What the holder does, for the line that is printed while waiting.
        progress: False to wait silently.
    """
    from filelock import FileLock, Timeout

    folder(entry.parent)
    path = entry.with_name(entry.name + ".lock")
    lock = FileLock(path, mode=0o644)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note(f"waiting for another process that is {doing} (it holds {path})", progress)
            lock.acquire(timeout=-1)
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        yield
    finally:
        lock.release()
