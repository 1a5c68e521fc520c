"""libmtmd: the library beside libllama that turns images and sound into embeddings. Opened when it is first needed."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

from ..bundles.elf import plain_name
from ..errors import AbiMismatch, MissingLibrary, UnsupportedByBundle
from . import guard
from .load import Library

# what mtmd_context_params_default writes: the last byte, and fields that are not 0
_EXTENT = 96
_DEFAULTS = {
    "use_gpu": True, "print_timings": True, "n_threads": 4, "flash_attn_type": -1, "warmup": True,
    "image_min_tokens": -1, "image_max_tokens": -1, "batch_max_tokens": 1024,
}  # fmt: skip

_lock = threading.Lock()
_opened: dict[str, Any] = {}


def available(library: Library) -> bool:
    """Whether the loaded bundle can see and hear."""
    return library.profile.has("mtmd_init_from_file") and _name(library) is not None


def _name(library: Library) -> str | None:
    return next((name for name in library.bundle.libraries if plain_name(name).startswith("libmtmd.")), None)


def functions(library: Library) -> Any:
    """The functions of mtmd.h in the loaded bundle.

    Raises:
        UnsupportedByBundle: the bundle has no libmtmd; the message names one that has.
        MissingLibrary, AbiMismatch: it could not be opened, or is not what the declarations say.
    """
    name = _name(library)
    if name is None or not library.profile.has("mtmd_init_from_file"):
        raise UnsupportedByBundle(
            f"bundle {library.bundle.name} has no libmtmd, which images and sound need: use v0.6.0-cpu "
            "(`llcuda-ffi bundle install v0.6.0-cpu`, then bundle='v0.6.0-cpu' or LLCUDA_FFI_BUNDLE=v0.6.0-cpu), "
            "or a build of your own (`llcuda-ffi bundle build`)"
        )
    with _lock:
        if name not in _opened:
            path = os.fspath(library.bundle.path / name)
            try:
                plain = ctypes.CDLL(path)
            except OSError as error:
                raise MissingLibrary(f"{name} of bundle {library.bundle.name} could not be loaded: {error}") from error
            _check(library, plain)
            lib = library.ffi.dlopen(library.ffi.cast("void *", plain._handle))
            _opened[name] = lib
            # its lines go where libllama's go
            callback, data = library.ffi.new("ggml_log_callback *"), library.ffi.new("void **")
            library.lib.llama_log_get(callback, data)
            lib.mtmd_helper_log_set(callback[0], data[0])
        return _opened[name]


def _check(library: Library, plain: ctypes.CDLL) -> None:
    """The load guard's canary for the one struct that goes by value."""
    raw, untouched = guard.capture(plain, "mtmd_context_params_default")
    extent = max(set(range(len(raw))) - untouched, default=-1) + 1
    ffi = library.ffi
    struct = ffi.from_buffer("struct mtmd_context_params *", bytearray(raw[:_EXTENT]))
    wrong = [name for name, want in _DEFAULTS.items() if getattr(struct, name) != want]
    if extent != _EXTENT or wrong:
        raise AbiMismatch(
            f"libmtmd of bundle {library.bundle.name} writes {extent} bytes of mtmd_context_params (expected "
            f"{_EXTENT}), other values than declared in {wrong or 'no field'}: it is of another version"
        )
