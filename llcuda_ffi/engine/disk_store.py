"""A folder of verified files under a budget, shared by processes.

A file appears whole, by a rename, under a name that says what it must hold; it begins with the SHA-256 of its content,
which is checked at each reading. Readers need no lock: a file that is removed stays readable to who has opened it.
Writers hold the folder's lock, make room first, and clear away what a killed one left. Nothing is synced: after a loss
of power a broken file is found by its hash, and forgotten.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time_ns

from filelock import FileLock

from ..errors import InvalidRequest
from ..fetch.cache import cache_root

_MAGIC = b"LLCUDAFFIPREFIX2"
_LOCK, _TEMPORARY = ".lock", ".tmp-"
_LEFT = 0.9  # of the budget, after old files were removed


def disk_cache_folder() -> Path:
    """Where Llama(disk_cache=…) keeps its files: LLCUDA_FFI_DISK_CACHE, or a folder of the user's cache."""
    chosen = os.environ.get("LLCUDA_FFI_DISK_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else cache_root() / "prefix"


@dataclass(frozen=True)
class DiskUsage:
    """What a folder holds.

    Attributes:
        files, nbytes: of all models together.
        models: how many models and settings they belong to.
    """

    files: int
    nbytes: int
    models: int


class DiskStore:
    """Files by group (a folder of its own) and name; least recently used ones are removed first."""

    def __init__(self, folder: Path, budget: int) -> None:
        """Open or make the folder, for this user alone.

        Raises:
            InvalidRequest: it cannot be made, belongs to somebody else, or others may write or read it.
        """
        self.folder, self.budget = folder, budget
        _own(folder)
        self._names: dict[str, tuple[int, frozenset[str]]] = {}

    def names(self, group: str) -> frozenset[str]:
        """The names in a group, read again where it changed."""
        try:
            changed = os.stat(self.folder / group).st_mtime_ns
        except FileNotFoundError:
            return frozenset()
        known = self._names.get(group)
        if known is None or known[0] != changed:
            known = self._names[group] = changed, frozenset(os.listdir(self.folder / group))
        return known[1]

    def read(self, group: str, name: str) -> memoryview | None:
        """A file's content; None where there is none, or not the one that was written: it is then removed."""
        path = self.folder / group / name
        try:
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
                state = os.fstat(file.fileno())
                if not stat.S_ISREG(state.st_mode) or not _mine(state):
                    return None
                raw = memoryview(file.read())
        except OSError:
            return None
        start = len(_MAGIC) + 32
        if raw[: len(_MAGIC)] == _MAGIC and hashlib.sha256(raw[start:]).digest() == raw[len(_MAGIC) : start]:
            return raw[start:]
        path.unlink(missing_ok=True)
        return None

    def touch(self, group: str, names: Sequence[str]) -> None:
        """These were used; later ones depend on earlier ones, which are to stay longer."""
        now = time_ns()
        for i, name in enumerate(names):
            try:
                os.utime(self.folder / group / name, ns=(now, now - 1000 * i))
            except OSError:
                continue  # another process removed it

    def write(self, group: str, files: Iterable[tuple[str, Sequence[bytes]]]) -> None:
        """Write files that are not there yet. What does not fit the budget, or the disk, is left out."""
        with FileLock(self.folder / _LOCK):
            folder = self.folder / group
            _own(folder)
            found = self._files()
            there = {path.name for path, _ in found if path.parent == folder}
            total = sum(state.st_size for _, state in found)
            oldest = iter(sorted(found, key=lambda one: one[1].st_mtime_ns))
            for name, parts in files:
                size = len(_MAGIC) + 32 + sum(map(len, parts))
                if name in there or size > self.budget:
                    continue
                most = self.budget if total + size <= self.budget else _LEFT * self.budget
                while total > 0 and total + size > most:
                    path, state = next(oldest, (None, None))
                    if path is None or state is None:
                        return  # all of it is what was written just now
                    path.unlink(missing_ok=True)
                    total -= state.st_size
                temporary = folder / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
                try:
                    _write(temporary, parts)
                    os.replace(temporary, folder / name)
                except OSError:
                    temporary.unlink(missing_ok=True)  # the disk is full: the cache does without it
                    return
                total += size

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """All files; those that a killed writer left half done are removed. Under the lock."""
        found = []
        for group in os.scandir(self.folder):
            if not group.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(group):
                if entry.name.startswith(_TEMPORARY):
                    os.unlink(entry)
                elif entry.is_file(follow_symlinks=False):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    def usage(self) -> DiskUsage:
        """What the folder holds."""
        with FileLock(self.folder / _LOCK):
            found = self._files()
        return DiskUsage(len(found), sum(state.st_size for _, state in found), len({path.parent for path, _ in found}))

    def clear(self) -> DiskUsage:
        """Remove all files; returns what there was."""
        with FileLock(self.folder / _LOCK):
            found = self._files()
            for path, _ in found:
                path.unlink(missing_ok=True)
        return DiskUsage(len(found), sum(state.st_size for _, state in found), len({path.parent for path, _ in found}))


def _write(path: Path, parts: Sequence[bytes]) -> None:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(_MAGIC + digest.digest())
        for part in parts:
            file.write(part)


def _mine(state: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or state.st_uid == os.geteuid()


def _own(folder: Path) -> None:
    """Make a folder for this user alone, or refuse one that is not."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = os.lstat(folder)
    except OSError as error:
        raise InvalidRequest(
            f"the disk cache's folder {folder} cannot be made ({error.strerror or error}): mend that, or set "
            "LLCUDA_FFI_DISK_CACHE to a folder of yours"
        ) from None
    if not stat.S_ISDIR(state.st_mode) or not _mine(state) or (os.name == "posix" and state.st_mode & 0o077):
        raise InvalidRequest(
            f"{folder} is not this user's own folder, closed to others (mode 0700): a cache that others could write "
            "is not read; remove it, or set LLCUDA_FFI_DISK_CACHE to another place"
        )
