"""Which bundle for which GPU, known before anything is loaded.

A CUDA library whose code does not fit a GPU lists it, loads the model, then aborts the process at the first kernel.
What fits follows from headers alone: machine code (SASS) of the same major architecture, or PTX in a language version
that the driver can compile. `judge` is a pure function of those facts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..errors import IncompatibleGpu, InvalidRequest
from ..hardware import cuda_libraries
from ..hardware.cpu import cpu_features
from ..hardware.fatbin import read_fatbin
from ..hardware.gpu import Gpu, GpuReport, survey
from ..hardware.platform import glibc_version
from ..params import shown
from . import elf, pins
from .installed import InstalledBundle

NATIVE, JIT, IMPOSSIBLE = "native", "jit", "impossible"
_RANK = {NATIVE: 0, JIT: 1, IMPOSSIBLE: 2}

# highest PTX ISA by CUDA version, where it is not simply (7, minor) for 11.x and (9, minor) for 13.x
_ISA_12 = {0: (8, 0), 1: (8, 1), 2: (8, 2), 3: (8, 3), 4: (8, 4), 5: (8, 5), 6: (8, 5), 7: (8, 6), 8: (8, 7), 9: (8, 8)}


@dataclass(frozen=True)
class CudaCode:
    """What a bundle has for GPUs.

    Attributes:
        cuda: major version of the runtime libraries that it needs; None where it carries them itself.
        sass, ptx: architectures (75 is compute capability 7.5).
        automatic: whether device="auto" may choose it.
    """

    name: str
    cuda: int | None
    sass: tuple[int, ...]
    ptx: tuple[int, ...]
    ptx_isa: tuple[int, int] | None
    min_glibc: tuple[int, ...] | None = None
    automatic: bool = True


@dataclass(frozen=True)
class Verdict:
    """What happens when a bundle runs on a GPU: "native", "jit" or "impossible", and why."""

    gpu: Gpu
    bundle: str
    how: str
    why: str

    def __str__(self) -> str:
        return f"GPU {self.gpu.index} {self.gpu.name} (sm_{self.gpu.arch}) × {self.bundle}: {self.how}: {self.why}"


@dataclass(frozen=True)
class Choice:
    """A bundle's name, the GPUs to use (none: CPU), every verdict, and what the user should know ("" if nothing)."""

    bundle: str
    gpus: tuple[Gpu, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    note: str = ""


def max_ptx_isa(cuda: tuple[int, int]) -> tuple[int, int]:
    """The newest PTX language that a driver of this CUDA version compiles."""
    major, minor = cuda
    if major < 11:
        return (6, 0)
    if major == 11:
        return (7, minor)
    if major == 12:
        return _ISA_12.get(minor, (8, 8))
    return (9, minor) if major == 13 else (major - 4, minor)


def judge(
    gpu: Gpu,
    code: CudaCode,
    *,
    driver_cuda: tuple[int, int] | None,
    glibc: tuple[int, ...] | None,
    runtimes: Collection[int],
) -> Verdict:
    """The verdict for one GPU and one bundle.

    Args:
        driver_cuda: the newest CUDA of the driver; None without a driver.
        glibc: the system's; None for another C library.
        runtimes: major CUDA versions whose runtime libraries were found.
    """

    def no(why: str) -> Verdict:
        return Verdict(gpu, code.name, IMPOSSIBLE, why)

    if driver_cuda is None:
        return no("there is no NVIDIA driver")
    if code.min_glibc is not None and (glibc is None or glibc < code.min_glibc):
        return no(
            f"it needs glibc {_dotted(code.min_glibc)}, this system has "
            f"{_dotted(glibc) if glibc else 'another C library'}"
        )
    if code.cuda is not None and driver_cuda[0] < code.cuda:
        return no(
            f"it is built with CUDA {code.cuda}, the driver knows CUDA up to {_dotted(driver_cuda)}: update the driver"
        )
    native = [arch for arch in code.sass if arch // 10 == gpu.compute[0] and arch <= gpu.arch]
    older = [arch for arch in code.ptx if arch <= gpu.arch]
    newest = max_ptx_isa(driver_cuda)
    if not native and not older:
        lowest = min((*code.sass, *code.ptx), default=None)
        if lowest is None:
            return no("it has no GPU code")
        if not code.ptx or gpu.arch >= lowest:
            return no(f"it has machine code for {_sm(code.sass)} only and no PTX that this GPU could use")
        return no(
            f"its code begins at compute capability {lowest // 10}.{lowest % 10}, this GPU has {_dotted(gpu.compute)}"
        )
    if not native and code.ptx_isa is not None and code.ptx_isa > newest:
        return no(
            f"it has no machine code for sm_{gpu.arch}, and its PTX is of ISA {_dotted(code.ptx_isa)}: a driver of "
            f"CUDA {_dotted(driver_cuda)} compiles up to {_dotted(newest)}"
        )
    if code.cuda is not None and code.cuda not in runtimes:
        command = cuda_libraries.COMMANDS.get(code.cuda, f"install the CUDA {code.cuda} runtime libraries")
        return no(f"CUDA {code.cuda}'s runtime libraries are not here: {command}")
    if native:
        return Verdict(gpu, code.name, NATIVE, f"machine code for sm_{max(native)}")
    return Verdict(
        gpu, code.name, JIT, f"compiled by the driver from PTX of compute_{max(older)} at the first run, then cached"
    )


def code_of_pin(pin: pins.Pin) -> CudaCode:
    """A pin's facts."""
    return CudaCode(
        name=pin.name,
        cuda=int(pin.cuda) if pin.cuda else None,
        sass=pin.sass,
        ptx=pin.ptx,
        ptx_isa=_pair(pin.ptx_isa),
        min_glibc=tuple(int(part) for part in pin.min_glibc.split(".")) if pin.min_glibc else None,
        # by name only: a pin without the hash of each library, which was never run by us; one that this CPU cannot run
        automatic=bool(pin.libraries)
        and all(archive.libraries for archive in pin.archives)
        and set(pin.cpu) <= set(cpu_features()),
    )


def code_of_bundle(bundle: InstalledBundle) -> CudaCode:
    """The facts of an installed bundle, read from its CUDA library itself; sass and ptx are empty without one."""
    name = next((name for name in bundle.libraries if name.startswith("libggml-cuda")), None)
    if name is None:
        return CudaCode(bundle.name, None, (), (), None)
    fatbin = read_fatbin(bundle.path / name)
    needed = elf.read_names(bundle.path / name).needed
    majors = [int(m[1]) for soname in needed if (m := re.fullmatch(r"lib(?:cudart|cublas)\.so\.(\d+)", soname))]
    return CudaCode(bundle.name, max(majors, default=None), fatbin.sass, fatbin.ptx, fatbin.ptx_isa)


def cuda_pins() -> list[CudaCode]:
    """The known CUDA bundles for this kind of machine."""
    return [code_of_pin(pin) for pin in pins.all_pins() if pin.backend == "cuda"]


def judge_all(
    report: GpuReport,
    codes: Sequence[CudaCode],
    *,
    glibc: tuple[int, ...] | None,
    runtimes: Collection[int],
) -> list[Verdict]:
    """Every GPU × bundle; by GPU, best first, in the order of `codes` among equals."""
    return [
        verdict
        for gpu in report.gpus
        for verdict in sorted(
            (judge(gpu, code, driver_cuda=report.cuda, glibc=glibc, runtimes=runtimes) for code in codes),
            key=lambda v: _RANK[v.how],
        )
    ]


def verdicts(report: GpuReport | None = None) -> list[Verdict]:
    """The verdicts for this machine."""
    return judge_all(report or survey(), cuda_pins(), glibc=glibc_version(), runtimes=cuda_libraries.complete())


def parse_device(device: str) -> tuple[str, int | None]:
    """ "auto", "cpu", "cuda" or "cuda:N" as kind and number.

    Raises:
        InvalidRequest: it is something else.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if match is None or (match[2] and match[1] != "cuda"):
        raise InvalidRequest(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', not {shown(device)}")
    return match[1], int(match[2]) if match[2] else None


def choose(
    device: str,
    *,
    report: GpuReport,
    codes: Sequence[CudaCode],
    glibc: tuple[int, ...] | None,
    runtimes: Collection[int],
    cpu_bundle: str,
) -> Choice:
    """The bundle and the GPUs for a device.

    Raises:
        IncompatibleGpu: "cuda" or "cuda:N" was asked for and no bundle runs there; the message has the table.
        InvalidRequest: the device has another form.
    """
    kind, number = parse_device(device)
    if kind == "cpu":
        return Choice(cpu_bundle)
    if number is not None and report.gpus and number >= len(report.gpus):
        raise IncompatibleGpu(f"there is no cuda:{number}: {_listed(report)}")
    if number is not None and report.gpus:
        report = GpuReport((report.gpus[number],), report.driver, report.cuda, report.reason)
    table = tuple(judge_all(report, codes, glibc=glibc, runtimes=runtimes))
    best: tuple[tuple[int, int], str, tuple[Gpu, ...]] | None = None
    for order, code in enumerate(codes):
        if not code.automatic:
            continue
        mine = [v for v in table if v.bundle == code.name and v.how != IMPOSSIBLE]
        if not mine:
            continue
        rank = min(_RANK[v.how] for v in mine)
        if best is None or (rank, order) < best[0]:
            best = (rank, order), code.name, tuple(v.gpu for v in mine)
    if best is not None:
        return Choice(best[1], best[2], table)
    why = report.reason or "no bundle runs on the GPU\n" + "\n".join(f"  {v}" for v in table)
    if kind == "cuda":
        raise IncompatibleGpu(f"device={device!r}: {why}")
    return Choice(cpu_bundle, (), table, "" if not report.gpus else f"running on the CPU: {why}")


def choose_here(device: str, report: GpuReport | None = None) -> Choice:
    """`choose` among the pins for this machine; the machine is not looked at for "cpu"."""
    kind, _ = parse_device(device)
    if kind == "cpu":
        return Choice(pins.default_name())
    found = report or survey()
    return choose(
        device,
        report=found,
        codes=cuda_pins(),
        glibc=glibc_version(),
        runtimes=cuda_libraries.complete() if found.gpus else (),
        cpu_bundle=pins.default_name(),
    )


def _listed(report: GpuReport) -> str:
    return "this process sees " + ", ".join(f"cuda:{i} {gpu.name}" for i, gpu in enumerate(report.gpus))


def _pair(version: str | None) -> tuple[int, int] | None:
    if version is None:
        return None
    major, _, minor = version.partition(".")
    return int(major), int(minor or 0)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _sm(archs: Sequence[int]) -> str:
    return ", ".join(f"sm_{arch}" for arch in archs) or "no GPU"
