"""The llama.cpp libraries: which are known, where they come from, their verified copies in the cache."""

from __future__ import annotations

import os

from ..errors import BundleNotFound, InvalidRequest
from . import own, pins, store
from .installed import InstalledBundle

__all__ = ["InstalledBundle", "chosen_name", "ensure", "installed", "selected", "use"]


def ensure(name: str | None = None, *, progress: bool | None = None) -> InstalledBundle:
    """The bundle to load, installed when it is missing.

    Args:
        name: A pin's name, a name given to `bundle build`, or the path of a folder or archive of an own build.
            Default: LLCUDA_FFI_BUNDLE, else the one of `bundle use`, else the default pin.
        progress: False for silence; otherwise a bar on a terminal and plain lines elsewhere.

    Raises:
        BundleNotFound: There is no such pin, folder or archive, or the pin is for other machines.
        DownloadError: It could not be fetched.
        ChecksumError: What arrived is not what was pinned.
    """
    pins.require_linux()
    chosen = os.fspath(name) if isinstance(name, os.PathLike) else name or chosen_name()
    if not isinstance(chosen, str):
        raise InvalidRequest(f"a bundle is a name, a folder or an archive, not {type(chosen).__name__}")
    built = own.named(chosen)
    if built is not None:
        return built
    if own.is_path(chosen):
        return own.open_build(chosen, progress=progress)
    try:
        pin = pins.get(chosen)
    except BundleNotFound as error:
        raise BundleNotFound(f"{error}{'' if name else f' ({_chosen_by()})'}") from None
    unsupported = pin.why_unsupported()
    if unsupported is not None:
        raise BundleNotFound(
            f"bundle {pin.name} cannot run here: {unsupported}. Build llama.cpp with shared libraries and set "
            "LLCUDA_FFI_BUNDLE to the build's folder"
        )
    return store.install(pin, progress=progress)


def chosen_name() -> str:
    """What is used when no bundle is named: LLCUDA_FFI_BUNDLE, else the one of `bundle use`, else the default pin."""
    return selected() or pins.default_name()


def selected() -> str | None:
    """What the user chose: LLCUDA_FFI_BUNDLE, else the one of `bundle use`; None where the machine decides."""
    return os.environ.get("LLCUDA_FFI_BUNDLE", "").strip() or store.in_use()


def _chosen_by() -> str:
    """Who named the bundle that is used when none is named, and the way back."""
    if os.environ.get("LLCUDA_FFI_BUNDLE", "").strip():
        return "LLCUDA_FFI_BUNDLE names it: unset it"
    return "`llcuda-ffi bundle use` chose it: `llcuda-ffi bundle use --auto` goes back"


def use(name: str | None) -> None:
    """Have a bundle used when none is named, by every process with this cache; None lets the machine decide again.

    Raises:
        BundleNotFound: There is no such bundle.
        DownloadError: The cache cannot be written.
    """
    if name is not None and own.named(name) is None:
        pins.get(name)
    store.set_in_use(name)


def installed() -> list[InstalledBundle]:
    """The bundles in the cache."""
    return store.all_installed()
