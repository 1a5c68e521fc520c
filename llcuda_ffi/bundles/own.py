"""Own builds of llama.cpp: a folder or an archive in place of a pinned bundle.

Nobody pinned their hashes, so the ABI profile is measured: a child process loads the libraries and compares
what they write with every profile. The child is another process because a library of an unknown ABI may crash
it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..child_process import python_command
from ..errors import AbiMismatch, BundleError, BundleNotFound, ChecksumError, DownloadError
from ..fetch.cache import cache_root, disk_error, folder
from ..fetch.integrity import file_sha256
from ..fetch.lock import entry_lock
from ..fetch.progress import note
from . import installed, pins, unpack
from .installed import InstalledBundle

MEASURE_SECONDS = 120
MODULES = ("cuda", "vulkan")


def is_path(chosen: str) -> bool:
    """Whether a bundle's name means a folder or an archive rather than a pin."""
    if any(pin.name == chosen for pin in pins.all_pins()) or named(chosen) is not None:
        return False
    return "/" in chosen or "\\" in chosen or Path(chosen).exists()


def named(name: str) -> InstalledBundle | None:
    """The bundle that `bundle build` installed under a name."""
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith((".", "own-")):
        return None
    there = installed.read(cache_root() / "bundles" / name)
    return there if there is not None and not there.verified and there.intact() else None


def measure(place: Path, what: str) -> str:
    """The ABI profile of the libraries in a folder, measured in a child process.

    `what` names them in messages.

    Raises:
        AbiMismatch: No profile fits.
    """
    command = python_command("llcuda_ffi.native.measure", str(place))
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=MEASURE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise AbiMismatch(f"the ABI of {what} could not be measured: {error}") from error
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        profile, differences = answer.get("profile"), answer.get("differences", [])
    except (IndexError, ValueError, AttributeError):
        said = done.stderr.strip().splitlines()
        raise AbiMismatch(
            f"the ABI of {what} could not be measured (exit status {done.returncode}): "
            f"{said[-1] if said else 'no answer'}"
        ) from None
    if not isinstance(profile, str):
        raise AbiMismatch(f"the libraries of {what} cannot be used: {'; '.join(map(str, differences))}")
    return profile


def open_build(chosen: str, *, progress: bool | None = None) -> InstalledBundle:
    """The own build in a folder or an archive; an archive is unpacked into the cache first.

    Raises:
        BundleNotFound: The path does not exist.
        AbiMismatch: Its ABI is none that is known.
    """
    path = Path(os.path.expanduser(chosen)).absolute()
    if not path.exists():
        raise BundleNotFound(f"there is no bundle at {path}: give a folder, an archive, or the name of a pinned bundle")
    if path.is_dir():
        there = installed.read(path)
        if there is not None and there.intact():
            return there
        libraries = unpack.collect(path)
        key = hashlib.sha256()
        for soname, library in sorted(libraries.items()):
            state = library.stat()
            key.update(f"{soname}\0{library}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        digest = key.hexdigest()
    else:
        digest = file_sha256(path)
        _compare(path, digest)
    entry = cache_root() / "bundles" / f"own-{digest[:16]}"
    there = installed.read(entry)
    if there is not None and there.intact():
        return there
    with entry_lock(entry, f"installing {path.name}", progress):
        there = installed.read(entry)
        if there is not None and there.intact():
            return there
        fresh = install(path.name, path, entry, source=str(path))
        note(f"measured {path.name}: ABI profile {fresh.profile}, {fresh.backend}", progress)
        return fresh


def _compare(path: Path, digest: str) -> None:
    """Compare an archive with the .sha256 file beside it, where there is one."""
    beside = path.with_name(path.name + ".sha256")
    try:
        words = beside.read_text(encoding="utf-8").split()
    except OSError:
        return  # nobody stated a hash
    if not words or words[0].lower() != digest:
        raise ChecksumError(f"{path} has sha256 {digest}, {beside.name} says {' '.join(words[:1])}: fetch it again")


def install(name: str, path: Path, entry: Path, *, source: str) -> InstalledBundle:
    """Install the libraries of a build's folder or archive at `entry`, measured; its lock is held.

    Raises:
        BundleError: There is no libllama, or the archive is broken.
        AbiMismatch: Its ABI is none that is known.
        DownloadError: The cache cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder(entry.parent), prefix=".unpack-") as temporary:
            place = Path(temporary) / "tree"
            place.mkdir()
            libraries = copy_libraries(path, place) if path.is_dir() else unpack.extract(path, place, {})
            fresh = describe(name, place, entry, libraries, source=source)
            fresh.write_receipt(place)
            if entry.exists():
                shutil.rmtree(entry)
            place.rename(entry)
            return fresh
    except DownloadError:
        raise
    except OSError as error:
        raise disk_error(error, entry) from error


def copy_libraries(source: Path, place: Path) -> dict[str, str]:
    """Copy a build's libraries to a folder, one per SONAME; file name → sha256.

    Raises:
        BundleError: There is no libllama below `source`.
    """
    found = unpack.collect(source)
    if not any(name.startswith("libllama") for name in found):
        raise BundleError(f"there is no libllama below {source}: build llama.cpp with BUILD_SHARED_LIBS=ON")
    for soname, library in found.items():
        shutil.copyfile(library, place / soname)
    return {soname: file_sha256(place / soname) for soname in found}


def describe(name: str, place: Path, path: Path, libraries: dict[str, str], *, source: str) -> InstalledBundle:
    """The bundle that the libraries in `place` make, to be published at `path`."""
    return InstalledBundle(
        name=name,
        path=path,
        profile=measure(place, name),
        backend=next(
            (kind for kind in MODULES if any(file.startswith(f"libggml-{kind}") for file in libraries)), "cpu"
        ),
        libraries=libraries,
        sizes={library: (place / library).stat().st_size for library in libraries},
        verified=False,
        source=source,
    )
