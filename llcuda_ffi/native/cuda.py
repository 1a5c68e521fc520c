"""What a CUDA bundle needs before it is loaded: GPUs that it fits, its runtime libraries, its switches.

The runtime libraries are opened by absolute path with RTLD_GLOBAL; libggml-cuda then finds them by SONAME.
LD_LIBRARY_PATH is neither needed nor changed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from ..bundles import InstalledBundle, elf, select
from ..errors import IncompatibleGpu, InvalidRequest, LoadError, MissingLibrary
from ..hardware import cuda_libraries
from ..hardware.gpu import GpuReport, survey
from ..hardware.platform import glibc_version
from . import guard

logger = logging.getLogger("llcuda_ffi")

# PCI address of each GPU that the loaded bundle has no code for → why
_unusable: dict[tuple[int, str], str] = {}

_asked_for_graphs = False  # by configure(graphs=True)

_STUB = 34  # CUDA_ERROR_STUB_LIBRARY
_NO_DEVICE = 100
_CU_ERRORS = {
    3: "the driver is shutting down",
    _NO_DEVICE: "it sees no GPU",
    802: "the system is not ready: the fabric manager of this machine may not run",
    803: "libcuda and the kernel's driver are of different versions: restart the machine or the container",
    804: "libcuda is a forward-compatibility build that this GPU does not support",
    999: "an unknown error; after suspending a notebook this means that the module nvidia_uvm must be loaded again",
}


@dataclass(frozen=True)
class CudaOptions:
    """Switches of libggml-cuda and of the driver. They are read when the library is loaded or first used.

    None leaves a switch as the environment has it.

    Attributes:
        graphs: CUDA graphs (GGML_CUDA_DISABLE_GRAPHS). Without a word, a model or context that they may be wrong for
            turns them off (native/cuda_graphs.py); True keeps them.
        graph_opt: run independent parts of a graph on several streams (GGML_CUDA_GRAPH_OPT).
        fusion: fused kernels (GGML_CUDA_DISABLE_FUSION).
        pinned: pinned host memory (GGML_CUDA_NO_PINNED).
        peer_access: direct access between GPUs (GGML_CUDA_P2P).
        unified_memory: let allocations spill into system memory (GGML_CUDA_ENABLE_UNIFIED_MEMORY).
        cublas_compute_type: "auto", "f32", "f16" or "bf16" (GGML_CUDA_CUBLAS_COMPUTE_TYPE).
        virtual_devices: show this many devices on fewer GPUs, to test splitting (GGML_CUDA_DEVICES).
        visible_devices: numbers or UUIDs of the GPUs to show (CUDA_VISIBLE_DEVICES).
        cache_path: folder of the kernels that the driver compiled from PTX (CUDA_CACHE_PATH).
    """

    graphs: bool | None = None
    graph_opt: bool | None = None
    fusion: bool | None = None
    pinned: bool | None = None
    peer_access: bool | None = None
    unified_memory: bool | None = None
    cublas_compute_type: str | None = None
    virtual_devices: int | None = None
    visible_devices: str | None = None
    cache_path: str | None = None

    def __post_init__(self) -> None:
        if self.cublas_compute_type not in (None, "auto", "f32", "f16", "bf16"):
            raise InvalidRequest(
                f"cublas_compute_type must be 'auto', 'f32', 'f16' or 'bf16', not {self.cublas_compute_type!r:.60}"
            )
        count = self.virtual_devices
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 16):
            raise InvalidRequest(f"virtual_devices must be from 1 to 16, not {count!r:.60}")
        for name in _FLAGS:
            if getattr(self, name) not in (None, True, False):
                raise InvalidRequest(f"{name} must be True, False or None, not {getattr(self, name)!r:.60}")


# switch → variable, and whether the variable being set means True; libggml tests for presence, so off is "unset"
_FLAGS = {
    "graphs": ("GGML_CUDA_DISABLE_GRAPHS", False),
    "graph_opt": ("GGML_CUDA_GRAPH_OPT", True),
    "fusion": ("GGML_CUDA_DISABLE_FUSION", False),
    "pinned": ("GGML_CUDA_NO_PINNED", False),
    "peer_access": ("GGML_CUDA_P2P", True),
    "unified_memory": ("GGML_CUDA_ENABLE_UNIFIED_MEMORY", True),
}
_VALUES = {
    "cublas_compute_type": "GGML_CUDA_CUBLAS_COMPUTE_TYPE",
    "virtual_devices": "GGML_CUDA_DEVICES",
    "visible_devices": "CUDA_VISIBLE_DEVICES",
    "cache_path": "CUDA_CACHE_PATH",
}


def configure(options: CudaOptions | None = None, **switches: object) -> CudaOptions:
    """Set switches for this process, before anything is loaded; returns those now in force.

    Raises:
        LoadError: a CUDA library is loaded already, the switches would change nothing.
        InvalidRequest: a value is out of range.
    """
    if options is None:
        unknown = switches.keys() - {f.name for f in fields(CudaOptions)}
        if unknown:
            raise InvalidRequest(f"unknown CUDA switch {', '.join(sorted(unknown))}: see CudaOptions")
        options = CudaOptions(**switches)  # type: ignore[arg-type]
    if guard.mapped("libggml-cuda"):
        raise LoadError("libggml-cuda is loaded already and has read its switches: set them in a fresh process, first")
    global _asked_for_graphs
    _asked_for_graphs = options.graphs is True
    for name, (variable, meaning) in _FLAGS.items():
        wanted = getattr(options, name)
        if wanted is None:
            continue
        if wanted is meaning:
            os.environ[variable] = "1"
        else:
            os.environ.pop(variable, None)
    for name, variable in _VALUES.items():
        value = getattr(options, name)
        if value is not None:
            os.environ[variable] = str(value)
    return in_force()


def in_force(environment: Mapping[str, str] | None = None) -> CudaOptions:
    """The switches as the environment has them now."""
    env = os.environ if environment is None else environment
    found: dict[str, object] = {}
    for name, (variable, meaning) in _FLAGS.items():
        value = env.get(variable)
        # these two are read as numbers, the others by presence
        by_number = variable in ("GGML_CUDA_DISABLE_FUSION", "GGML_CUDA_GRAPH_OPT")
        there = value is not None and not (by_number and value.strip() in ("0", ""))
        found[name] = there is meaning
    for name, variable in _VALUES.items():
        found[name] = env.get(variable)
    devices = found["virtual_devices"]
    found["virtual_devices"] = (
        int(devices) if isinstance(devices, str) and devices.isdigit() and devices != "0" else None
    )
    if found["cublas_compute_type"] not in ("auto", "f32", "f16", "bf16"):
        found["cublas_compute_type"] = None
    return CudaOptions(**found)  # type: ignore[arg-type]


def avoid_graphs() -> bool:
    """Turn CUDA graphs off, which the library reads when it first computes; not where they were asked for.

    Returns:
        whether the switch is off now.
    """
    if not _asked_for_graphs:
        os.environ[_FLAGS["graphs"][0]] = "1"
    return not in_force().graphs


def prepare(bundle: InstalledBundle) -> None:
    """Make sure that the bundle's CUDA library can run here, and open what it needs.

    Raises:
        IncompatibleGpu: its code does not run on any GPU here; it would abort the process at the first kernel.
        MissingLibrary: a library that it needs is not here; the message has the command that brings it.
    """
    name = next((name for name in bundle.libraries if name.startswith("libggml-cuda")), None)
    if name is None:
        raise MissingLibrary(f"bundle {bundle.name} has no libggml-cuda")
    report = survey()
    needed = elf.read_names(bundle.path / name).needed
    _check_gpus(bundle, report)
    wanted = [n for n in needed if re.match(r"lib(cudart|cublas|cublasLt|nccl)\.so", n)]
    for soname in tuple(wanted):
        if (match := re.fullmatch(r"libcublas\.so\.(\d+)", soname)) and f"libcublasLt.so.{match[1]}" not in wanted:
            wanted.insert(wanted.index(soname), f"libcublasLt.so.{match[1]}")  # cuBLAS itself needs it
    wanted.sort(key=lambda n: (not n.startswith("libcudart"), not n.startswith("libcublasLt")))
    if "libcuda.so.1" in needed:
        _check_driver()
    _preload(wanted, bundle.name)


def _check_gpus(bundle: InstalledBundle, report: GpuReport) -> None:
    if not report.gpus:
        raise IncompatibleGpu(
            f"bundle {bundle.name} needs an NVIDIA GPU: {report.reason}. Use device='cpu', or a CPU bundle"
        )
    code = select.code_of_bundle(bundle)
    # missing runtime libraries have a better message of their own
    runtimes = () if code.cuda is None else (code.cuda,)
    table = select.judge_all(report, [code], glibc=glibc_version(), runtimes=runtimes)
    bad = [v for v in table if v.how == select.IMPOSSIBLE]
    if bad and len(bad) == len(table):
        rows = "\n".join(f"  {v}" for v in table)
        raise IncompatibleGpu(
            f"bundle {bundle.name} would abort the process on this machine:\n{rows}\n"
            "`llcuda-ffi doctor` names one that runs"
        )
    for verdict in bad:
        logger.warning("left unused: %s", verdict)
        _unusable[_address(verdict.gpu.pci)] = verdict.why
    if any(v.how == select.JIT for v in table) and not _jit_cache():
        logger.warning(
            "bundle %s has no machine code for this GPU: the driver compiles it during the first run, which takes "
            "tens of seconds once; the result is kept in %s",
            bundle.name,
            os.environ.get("CUDA_CACHE_PATH", "~/.nv/ComputeCache"),
        )


def unusable(pci: str) -> str:
    """Why the GPU at this PCI address must not be used with the loaded bundle; "" if it may."""
    return _unusable.get(_address(pci), "")


def _address(pci: str) -> tuple[int, str]:
    """Comparable: NVML writes the domain with eight digits, libggml with four."""
    domain, _, rest = pci.lower().partition(":")
    try:
        return int(domain, 16), rest
    except ValueError:
        return -1, pci


def _jit_cache() -> bool:
    """Whether the driver's cache of compiled kernels holds something already."""
    folder = Path(os.environ.get("CUDA_CACHE_PATH") or os.path.expanduser("~/.nv/ComputeCache"))
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _check_driver() -> None:
    """libcuda is the driver's own, not the stub of a toolkit, and starts."""
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MissingLibrary(f"libcuda.so.1 of the NVIDIA driver cannot be loaded: {error}") from error
    path = next((str(p) for p in guard.mapped("libcuda.so")), "libcuda.so.1")
    code = int(driver.cuInit(0))
    if code == _STUB or "/stubs/" in path:
        raise MissingLibrary(
            f"{path} is the stub of a CUDA toolkit, made for linking only: take its folder out of LD_LIBRARY_PATH, or "
            "install the NVIDIA driver"
        )
    if code:
        raise LoadError(
            f"the NVIDIA driver does not start (cuInit: {code}): {_CU_ERRORS.get(code, 'see `nvidia-smi`')}"
        )


def _preload(wanted: list[str], bundle: str) -> None:
    """Open the runtime libraries, in order; those that the process has already stay."""
    lacking = [name for name in wanted if not guard.mapped(name)]
    found = cuda_libraries.find(lacking)
    if found.missing:
        commands = dict.fromkeys(cuda_libraries.command_for(name) for name in found.missing)
        raise MissingLibrary(
            f"bundle {bundle} needs {', '.join(found.missing)}, which this machine does not have: "
            f"{' and '.join(commands)}"
        )
    for name in lacking:
        try:
            ctypes.CDLL(os.fspath(found.paths[name]), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MissingLibrary(f"{found.paths[name]} cannot be loaded: {error}") from error
    _check_versions(wanted, found)


def _check_versions(wanted: list[str], found: cuda_libraries.CudaLibraries) -> None:
    """cuBLAS and cuBLASLt are one release; the runtime is of the major version that its name says."""
    versions = {name: version for name in wanted if (version := _version(name)) is not None}
    blas = {name: v for name, v in versions.items() if name.startswith("libcublas")}
    if len(set(blas.values())) > 1:
        told = ", ".join(f"{name} {v // 1000}.{v % 1000}" for name, v in blas.items())
        raise MissingLibrary(
            f"{told} are of different releases ({found.origin}): install both from one source, e.g. with "
            f"{cuda_libraries.command_for(next(iter(blas)))}"
        )
    for name, version in versions.items():
        logger.debug("%s: version %d.%d", name, version // 1000, version % 1000)


def _version(name: str) -> int | None:
    """major × 1000 + minor of a loaded cuBLAS or CUDA runtime; None where it does not say."""
    try:
        library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None
    if name.startswith("libcudart"):
        number = ctypes.c_int()
        if library.cudaRuntimeGetVersion(ctypes.byref(number)):
            return None
        return number.value // 1000 * 1000 + number.value % 1000 // 10
    getter = {"libcublasLt": "cublasLtGetProperty", "libcublas": "cublasGetProperty"}.get(name.split(".", 1)[0])
    if getter is None:
        return None
    parts = []
    for which in (0, 1):  # MAJOR_VERSION, MINOR_VERSION
        number = ctypes.c_int()
        if getattr(library, getter)(which, ctypes.byref(number)):
            return None
        parts.append(number.value)
    return parts[0] * 1000 + parts[1]
