"""Loading libllama: one bundle per process, behind the guard."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..bundles import InstalledBundle, ensure
from ..bundles.elf import plain_name, read_names
from ..errors import ConcurrentUseError, LoadError, MissingLibrary
from . import guard, log
from .profile import Profile, profile

_LACKING = {
    "cuda": "a GPU, its driver or CUDA's runtime libraries are missing (`llcuda-ffi doctor`)",
    "vulkan": "libvulkan.so.1 or a device that speaks Vulkan is missing",
}

_CXX = "libstdc++.so.6"

_lock = threading.Lock()
_library: Library | None = None


@dataclass(frozen=True)
class Library:
    """The loaded libllama.

    Attributes:
        ffi: the profile's FFI.
        lib: its functions (libllama and, through its dependencies, libggml and libggml-base).
        profile: the ABI.
        bundle: where it came from.
        backends: names of the registered backends, e.g. ("CPU",).
        openmp: whether it computes with OpenMP's threads, which a fork leaves in a state that hangs.
        pid: the process that loaded it.
    """

    ffi: Any
    lib: Any
    profile: Profile
    bundle: InstalledBundle
    backends: tuple[str, ...] = field(default=())
    openmp: bool = False
    pid: int = 0

    @property
    def cpu_variant(self) -> str:
        """Which build of the CPU backend runs here, e.g. "zen4"; "" where there is only one."""
        for path in guard.mapped("libggml-cpu"):
            return plain_name(path.name).removeprefix("libggml-cpu").removeprefix("-").split(".so")[0]
        return ""

    def has_kernel(self, function: str) -> bool:
        """Whether the CPU backend that runs here exports a function."""
        here = self.bundle.path.resolve()
        return any(
            hasattr(ctypes.CDLL(os.fspath(path)), function)
            for path in guard.mapped("libggml-cpu")
            if path.resolve().parent == here
        )


def load(bundle: InstalledBundle | None = None) -> Library:
    """The process's libllama; the first call loads it.

    Args:
        bundle: what to load; None means the loaded one, else the default (installed when it is missing).

    Raises:
        LoadError: another bundle is loaded already.
        ChecksumError, AbiMismatch, MissingLibrary: the guard refused.
        BundleError: it could not be installed.
    """
    global _library
    with _lock:
        if _library is None:
            _library = _load(bundle or ensure())
        elif _library.openmp and _library.pid != os.getpid():
            raise ConcurrentUseError(
                f"bundle {_library.bundle.name} computes with OpenMP, whose threads do not survive a fork: start this "
                "process with the multiprocessing start method 'spawn', or use a bundle without OpenMP (v0.5.0-cpu)"
            )
        elif bundle is not None and bundle.path.resolve() != _library.bundle.path.resolve():
            raise LoadError(
                f"bundle {_library.bundle.name} is loaded in this process, {bundle.name} cannot be added: "
                "use another process"
            )
        return _library


def inherited() -> None:
    """In a fork of a process in which nothing was computed yet: its libllama may be used here."""
    global _library
    if _library is not None:
        _library = replace(_library, pid=os.getpid())


def loaded() -> Library | None:
    """The process's libllama, or None when nothing has been loaded yet."""
    return _library


def _load(bundle: InstalledBundle) -> Library:
    abi = profile(bundle.profile)
    bundle.verify()
    guard.check_single(bundle.path, loaded=False)
    # libggml forks and runs a debugger when it aborts, and reads a backend from GGML_BACKEND_PATH
    os.environ["GGML_NO_BACKTRACE"] = "1"
    os.environ.pop("GGML_BACKEND_PATH", None)
    if not abi.has("llama_set_adapters_lora"):
        # these builds compute with the graph of the batch before, although its adapters were changed since
        os.environ["LLAMA_GRAPH_REUSE_DISABLE"] = "1"
    if bundle.backend == "cuda":
        from . import cuda

        cuda.prepare(bundle)
    openmp = _needs_openmp(bundle)
    if openmp and "OMP_WAIT_POLICY" not in os.environ:
        # Its threads spin at every barrier: on a busy machine, or with more threads than cores, decoding stands still.
        # Without any spinning an idle machine decodes slower, so libgomp has them spin for some microseconds.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    llama = open_core(bundle.path, list(bundle.libraries))
    guard.check_single(bundle.path, loaded=True)
    guard.check(llama, abi, exact=bundle.verified)
    ffi = abi.ffi
    lib = ffi.dlopen(ffi.cast("void *", llama._handle))  # not by its path, which cffi cannot encode in every locale
    log.install(ffi, lib)
    backends = _start(bundle, ffi, lib)
    return Library(ffi, lib, abi, bundle, backends, openmp, os.getpid())


def _needs_openmp(bundle: InstalledBundle) -> bool:
    return any("libgomp.so.1" in read_names(bundle.path / name).needed for name in bundle.libraries)


def core_libraries(folder: Path, names: Iterable[str]) -> list[Path]:
    """libggml-base, libggml and libllama of a bundle, in the order of loading.

    Raises:
        MissingLibrary: one is not among its files.
    """
    found = []
    for stem in ("libggml-base.", "libggml.", "libllama."):
        matching = [name for name in names if plain_name(name).startswith(stem)]
        if len(matching) != 1:
            what = f"is there {len(matching)} times ({', '.join(matching)})" if matching else "is not there"
            raise MissingLibrary(f"{stem}so {what} in the bundle {folder}: `llcuda-ffi bundle verify` checks it")
        found.append(folder / matching[0])
    return found


def open_core(folder: Path, names: Sequence[str]) -> ctypes.CDLL:
    """Load a bundle's libllama, and by absolute path each library of the folder that it needs.

    A build without loadable backends links them: its search paths may point to a folder that is gone, or to
    another build. What is loaded already under its SONAME is not searched for.

    Raises:
        MissingLibrary: one is not there or cannot be loaded.
    """
    _open_foreign(folder, names)
    opened: dict[str, ctypes.CDLL | None] = {}

    def open_with_needs(name: str) -> None:
        if name in opened:
            return
        opened[name] = None  # stops at a cycle
        if (folder / name).exists():
            for needed in read_names(folder / name).needed:
                if needed in names:
                    open_with_needs(needed)
        opened[name] = _open(folder / name)

    paths = core_libraries(folder, names)
    for path in paths:
        open_with_needs(path.name)
    llama = opened[paths[-1].name]
    if llama is None:
        raise MissingLibrary(f"{paths[-1]} could not be loaded")
    return llama


def _open_foreign(folder: Path, names: Sequence[str]) -> None:
    """Load by name what a bundle's libraries need from the system (libstdc++.so.6, libgcc_s.so.1, libgomp.so.1).

    The npm packages' libraries have the search path `$ORIGIN:`, whose empty end is the current folder: a libstdc++ that
    lies there would be loaded. What is loaded already under its SONAME is not searched for.

    A build with a libstdc++ of its own inside gets the system's for all: another module (numpy) brings that one too,
    and where each library takes a part of the other's, streams use the wrong facets and end the process.

    Raises:
        MissingLibrary: the system lacks one, and a library of the bundle would take it from the current folder.
    """
    found: dict[str, bool] = {}
    for name in names:
        if ".so" not in name or not (folder / name).exists():
            continue
        elf = read_names(folder / name)
        for needed in elf.needed:
            if needed in names:
                continue
            if needed not in found:
                try:
                    ctypes.CDLL(needed)
                except OSError:
                    found[needed] = False
                else:
                    found[needed] = True
            if not found[needed] and elf.searches_current_folder:
                raise MissingLibrary(
                    f"{name} needs {needed}, which is not on this system, and would take it from the current folder: "
                    "install it (`llcuda-ffi doctor`)"
                )
    if _CXX not in found:
        try:
            ctypes.CDLL(_CXX, ctypes.RTLD_GLOBAL)
        except OSError:  # then nothing else brings it either
            pass


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(os.fspath(path))
    except OSError as error:
        if not path.exists():
            raise MissingLibrary(f"{path} is gone: `llcuda-ffi bundle install` puts it back") from error
        mend = "`llcuda-ffi doctor` says what this system lacks"
        if "libgomp" in str(error):
            mend = "the system lacks OpenMP's library (Debian and Ubuntu: libgomp1; Fedora: libgomp)"
        raise MissingLibrary(f"{path.name} could not be loaded: {error}. {mend}") from error


def _load_cpu(bundle: InstalledBundle, lib: Any) -> None:
    """Register the best CPU backend of a folder and nothing else (as load_all chooses it, by ggml_backend_score)."""
    scores = {}
    for name in bundle.libraries:
        if plain_name(name).startswith("libggml-cpu"):
            score = getattr(ctypes.CDLL(os.fspath(bundle.path / name)), "ggml_backend_score", None)
            scores[name] = 1 if score is None else int(score())
    best = max(scores, key=lambda name: scores[name], default=None)
    if best is not None and scores[best] > 0:
        lib.ggml_backend_load(os.fsencode(bundle.path / best))


def _start(bundle: InstalledBundle, ffi: Any, lib: Any) -> tuple[str, ...]:
    """Register the backends of the bundle's folder, then initialise libllama."""
    with log.listen() as heard:
        if bundle.backend != "cpu":
            # load_all is silent about failures, this call logs why; and names with a hash are not found by load_all
            for name in bundle.libraries:
                module = name.startswith(f"libggml-{bundle.backend}")
                if module and not lib.ggml_backend_load(os.fsencode(bundle.path / name)):
                    lacking = _LACKING[bundle.backend]
                    raise MissingLibrary(f"{name} of bundle {bundle.name} could not be loaded: {lacking}{heard.why()}")
        if bundle.backend == "cpu" and any(bundle.path.glob("libggml-cuda*")):
            _load_cpu(bundle, lib)  # a trial's process: CUDA does not survive its forks
        else:
            lib.ggml_backend_load_all_from_path(os.fsencode(bundle.path))
    names = tuple(
        ffi.string(lib.ggml_backend_reg_name(lib.ggml_backend_reg_get(i))).decode()
        for i in range(lib.ggml_backend_reg_count())
    )
    if "CPU" not in names:
        raise MissingLibrary(
            f"no CPU backend of bundle {bundle.name} runs on this processor: see `llcuda-ffi doctor`{heard.why()}"
        )
    lib.llama_backend_init()
    return names
