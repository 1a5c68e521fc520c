"""Where downloads are kept, and the environment switches that say so."""

from __future__ import annotations

import errno
import getpass
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from ..errors import DownloadError
from .progress import note

# A temporary file or folder nobody has touched for so long belongs to a process that died.
STALE_SECONDS = 2 * 24 * 3600


def cache_root() -> Path:
    """The folder of all caches: LLCUDA_FFI_CACHE, or the platform's cache folder of the user.

    A user without a home folder that can be written (a container started with some number as its user) gets a folder
    of its own among the temporary files.

    Raises:
        DownloadError: That folder belongs to somebody else.
    """
    chosen = os.environ.get("LLCUDA_FFI_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen)).absolute()
    import platformdirs

    try:
        usual = platformdirs.user_cache_path("llcuda-ffi")
    except RuntimeError:  # no HOME, and no entry for the user id; older versions leave "~" in the path
        return _temporary_root()
    # os.path answers False for a home folder that is somebody else's, where Path raises
    if usual.is_absolute() and (os.path.exists(usual) or os.access(_existing_parent(usual), os.W_OK)):
        return usual
    return _temporary_root()


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if os.path.exists(parent))


def _temporary_root() -> Path:
    user = os.getuid() if sys.platform != "win32" else getpass.getuser()
    path = Path(tempfile.gettempdir(), f"llcuda-ffi-{user}")
    try:
        path.mkdir(mode=0o700)
        note(f"there is no home folder to write to: the cache is {path} (LLCUDA_FFI_CACHE names another place)")
    except FileExistsError:
        pass
    except OSError as error:
        raise disk_error(error, path) from error
    state = path.lstat()
    if sys.platform != "win32" and (state.st_uid != user or state.st_mode & 0o022 or not path.is_dir()):
        raise DownloadError(f"{path} is not this user's own folder: set LLCUDA_FFI_CACHE to one that is")
    return path


def offline() -> bool:
    """Whether LLCUDA_FFI_OFFLINE forbids the network."""
    return os.environ.get("LLCUDA_FFI_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def mirror() -> str | None:
    """LLCUDA_FFI_MIRROR: a base URL or a folder that takes the place of every pinned source."""
    return os.environ.get("LLCUDA_FFI_MIRROR", "").strip() or None


def folder(path: Path) -> Path:
    """Make a folder of the cache.

    Raises:
        DownloadError: It cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise DownloadError(
            f"the cache folder {path} cannot be written ({error.strerror or error}): "
            "mend its permissions, or set LLCUDA_FFI_CACHE to a folder that can be written"
        ) from error
    return path


def disk_error(error: OSError, path: Path) -> DownloadError:
    """The one message for a local disk that refuses a write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return DownloadError(
        f"writing {path} failed ({error.strerror or error}): {'free some space there' if full else 'mend that'}, "
        "or set LLCUDA_FFI_CACHE to another folder; nothing half-written is used"
    )


def sweep(place: Path, prefix: str) -> None:
    """Remove temporary files and folders below `place` that a dead process left behind long ago."""
    limit = time.time() - STALE_SECONDS
    for path in place.glob(f"{prefix}*"):
        try:
            old = path.lstat().st_mtime < limit
            if old and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif old:
                path.unlink()
        except OSError:
            continue  # another process was faster, or it is not ours: it costs only space
