"""The verdict for each GPU and bundle, over real cards and drivers, and what follows for device=."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi.bundles import InstalledBundle, pins, select
from llcuda_ffi.bundles.select import IMPOSSIBLE, JIT, NATIVE, CudaCode
from llcuda_ffi.core.placement import from_log
from llcuda_ffi.devices import placement
from llcuda_ffi.devices.placement import Device, Room
from llcuda_ffi.errors import IncompatibleGpu, InvalidRequest
from llcuda_ffi.hardware.gpu import Gpu, GpuReport
from llcuda_ffi.native import cuda

from ..hardware.test_fatbin import SASS, container, elf, entry

GIB = 1 << 30
BOTH = (12, 13)
# driver 550 is CUDA 12.4, 570 is 12.8, 580 is 13.0, 590 is 13.1
CARDS = [
    ("Tesla T4", (7, 5), "550", (12, 4), IMPOSSIBLE, JIT, NATIVE, "b11669-cuda12"),
    ("Tesla T4", (7, 5), "580", (13, 0), IMPOSSIBLE, JIT, NATIVE, "b11669-cuda12"),
    ("Tesla P100", (6, 0), "580", (13, 0), IMPOSSIBLE, JIT, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("Tesla V100", (7, 0), "580", (13, 0), IMPOSSIBLE, JIT, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("A100", (8, 0), "550", (12, 4), IMPOSSIBLE, JIT, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("A100", (8, 0), "590", (13, 1), JIT, JIT, IMPOSSIBLE, "v0.5.0-cuda13"),
    ("L4", (8, 9), "550", (12, 4), IMPOSSIBLE, NATIVE, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("L4", (8, 9), "580", (13, 0), NATIVE, NATIVE, IMPOSSIBLE, "v0.5.0-cuda13"),
    ("RTX 3090", (8, 6), "580", (13, 0), NATIVE, NATIVE, IMPOSSIBLE, "v0.5.0-cuda13"),
    ("RTX 4090", (8, 9), "580", (13, 0), NATIVE, NATIVE, IMPOSSIBLE, "v0.5.0-cuda13"),
    ("RTX 5090", (12, 0), "570", (12, 8), IMPOSSIBLE, JIT, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("RTX 5090", (12, 0), "580", (13, 0), NATIVE, JIT, IMPOSSIBLE, "v0.5.0-cuda13"),
    ("H100", (9, 0), "550", (12, 4), IMPOSSIBLE, JIT, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("H200", (9, 0), "580", (13, 0), IMPOSSIBLE, JIT, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("B200", (10, 0), "580", (13, 0), IMPOSSIBLE, JIT, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("B200", (10, 0), "590", (13, 1), JIT, JIT, IMPOSSIBLE, "v0.5.0-cuda13"),
    ("Quadro K2200", (5, 0), "550", (12, 4), IMPOSSIBLE, JIT, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("RTX 3090", (8, 6), "535", (12, 2), IMPOSSIBLE, NATIVE, IMPOSSIBLE, "v0.5.0-cuda12"),
    ("A100", (8, 0), "535", (12, 2), IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE, "v0.5.0-cpu"),
    ("A100", (8, 0), "470", (11, 4), IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE, "v0.5.0-cpu"),
]


def machine(name: str, compute: tuple[int, int], driver: str, cuda_version: tuple[int, int]) -> GpuReport:
    return GpuReport((Gpu(0, name, compute, 16 * GIB, 15 * GIB),), driver, cuda_version)


def chosen(device: str, report: GpuReport, runtimes: tuple[int, ...] = BOTH) -> select.Choice:
    return select.choose(
        device, report=report, codes=select.cuda_pins(), glibc=(2, 35), runtimes=runtimes, cpu_bundle="v0.5.0-cpu"
    )


@pytest.mark.parametrize(
    ("name", "compute", "driver", "version", "cuda13", "cuda12", "llcuda", "best"),
    CARDS,
    ids=[f"{row[0]}/{row[2]}" for row in CARDS],
)
def test_real_cards(
    name: str,
    compute: tuple[int, int],
    driver: str,
    version: tuple[int, int],
    cuda13: str,
    cuda12: str,
    llcuda: str,
    best: str,
) -> None:
    """Each known bundle on each card and driver: native, JIT or impossible; device="auto" takes the best."""
    report = machine(name, compute, driver, version)
    table = select.judge_all(report, select.cuda_pins(), glibc=(2, 35), runtimes=BOTH)
    how = {verdict.bundle: verdict.how for verdict in table}
    # machine code for sm_75 only, and PTX of 8.4 for what came later
    turing = NATIVE if compute == (7, 5) else JIT if compute > (7, 5) and version >= (12, 4) else IMPOSSIBLE
    known = {"v0.5.0-cuda13": cuda13, "v0.5.0-cuda12": cuda12, "llcuda-v2.0.6": llcuda, "b11669-cuda12": turing}
    assert how == known
    assert all(verdict.why for verdict in table)
    assert [select._RANK[v.how] for v in table] == sorted(select._RANK[v.how] for v in table)
    choice = chosen("auto", report)
    assert choice.bundle == best
    assert bool(choice.gpus) is (best != "v0.5.0-cpu")
    assert bool(choice.note) is (best == "v0.5.0-cpu")
    if best == "v0.5.0-cpu":
        with pytest.raises(IncompatibleGpu, match=f"(?s){name}.*v0.5.0-cuda13.*impossible"):
            chosen("cuda", report)


def test_the_h200_of_the_abort() -> None:
    """The case that killed the process: no SASS for sm_90, and PTX newer than driver 580; the message says both."""
    report = machine("H200", (9, 0), "580.159", (13, 0))
    verdict = select.judge(
        report.gpus[0], select.code_of_pin(pins.get("v0.5.0-cuda13")), driver_cuda=(13, 0), glibc=(2, 39), runtimes=BOTH
    )
    assert verdict.how == IMPOSSIBLE
    assert "sm_90" in verdict.why
    assert "9.1" in verdict.why
    assert "9.0" in verdict.why


def test_no_driver() -> None:
    """Without a driver auto is the CPU, silently; cuda says why there is no GPU."""
    report = GpuReport(reason="there is no NVIDIA driver on this machine")
    assert chosen("auto", report) == select.Choice("v0.5.0-cpu")
    with pytest.raises(IncompatibleGpu, match="no NVIDIA driver"):
        chosen("cuda", report)
    code = select.cuda_pins()[0]
    assert select.judge(Gpu(0, "x", (8, 6)), code, driver_cuda=None, glibc=(2, 35), runtimes=BOTH).how == IMPOSSIBLE


def test_missing_runtime_names_the_command() -> None:
    """A GPU that fits without CUDA's runtime libraries: auto goes to the CPU and says which command brings them."""
    report = machine("RTX 4090", (8, 9), "580", (13, 0))
    assert chosen("auto", report, runtimes=(12,)).bundle == "v0.5.0-cuda12"
    choice = chosen("auto", report, runtimes=())
    assert choice.bundle == "v0.5.0-cpu"
    assert "pip install 'llcuda-ffi[cuda13]'" in choice.note


def test_old_glibc() -> None:
    """A system older than the bundle's C library is refused with both versions."""
    report = machine("RTX 4090", (8, 9), "580", (13, 0))
    verdicts = select.judge_all(report, select.cuda_pins(), glibc=(2, 31), runtimes=BOTH)
    why = next(v.why for v in verdicts if v.bundle == "v0.5.0-cuda13")
    assert "2.34" in why
    assert "2.31" in why
    musl = select.judge(report.gpus[0], select.cuda_pins()[0], driver_cuda=(13, 0), glibc=None, runtimes=BOTH)
    assert "another C library" in musl.why


def test_several_gpus() -> None:
    """The bundle that is best on some GPU wins, with the GPUs it runs on; cuda:N looks at that one alone."""
    report = GpuReport((Gpu(0, "RTX 4090", (8, 9)), Gpu(1, "Tesla P100", (6, 0))), "580", (13, 0))
    choice = chosen("cuda", report)
    assert (choice.bundle, [gpu.index for gpu in choice.gpus]) == ("v0.5.0-cuda13", [0])
    assert chosen("cuda:1", report).bundle == "v0.5.0-cuda12"
    with pytest.raises(IncompatibleGpu, match="cuda:0 RTX 4090, cuda:1 Tesla P100"):
        chosen("cuda:2", report)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", "CUDA", "", 0])
def test_bad_devices(device: str) -> None:
    """Anything but auto, cpu, cuda and cuda:N is refused."""
    with pytest.raises(InvalidRequest, match="device must be"):
        select.parse_device(device)


@pytest.mark.parametrize(
    ("version", "isa"),
    [
        ((11, 8), (7, 8)),
        ((12, 0), (8, 0)),
        ((12, 5), (8, 5)),
        ((12, 6), (8, 5)),
        ((12, 9), (8, 8)),
        ((13, 1), (9, 1)),
        ((10, 2), (6, 0)),
    ],
)
def test_ptx_isa_of_drivers(version: tuple[int, int], isa: tuple[int, int]) -> None:
    """The language version that a driver compiles, by its CUDA version."""
    assert select.max_ptx_isa(version) == isa


def fake_bundle(folder: Path, *archs: int) -> InstalledBundle:
    """A bundle whose libggml-cuda has machine code for these architectures and would crash if it were loaded."""
    folder.mkdir()
    (folder / "libggml-cuda.so").write_bytes(elf(container(*(entry(SASS, arch) for arch in archs))))
    return InstalledBundle("own", folder, "v0.5.0", "cuda", {"libggml-cuda.so": ""}, verified=False)


@pytest.fixture
def no_elf_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files written here have no dynamic section."""
    monkeypatch.setattr(
        select.elf, "read_names", lambda path: select.elf.ElfNames(None, ("libcudart.so.13", "libcuda.so.1"))
    )


@pytest.mark.usefixtures("no_elf_names")
def test_a_library_without_code_is_refused_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prepare() reads the library's own headers: code for sm_86 only is refused on an H200, without opening it."""
    bundle = fake_bundle(tmp_path / "bundle", 86)
    monkeypatch.setattr(cuda, "survey", lambda: machine("H200", (9, 0), "580", (13, 0)))
    with pytest.raises(IncompatibleGpu, match=r"(?s)would abort the process.*H200.*sm_86"):
        cuda.prepare(bundle)
    monkeypatch.setattr(cuda, "survey", lambda: GpuReport(reason="the NVIDIA driver lists no GPU"))
    with pytest.raises(IncompatibleGpu, match="lists no GPU"):
        cuda.prepare(bundle)


@pytest.mark.usefixtures("no_elf_names")
def test_one_unusable_gpu_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where one GPU of two has no code, it is named and marked; its address is compared in NVML's and ggml's form."""
    bundle = fake_bundle(tmp_path / "bundle", 86)
    gpus = (Gpu(0, "RTX 4090", (8, 9), pci="00000000:01:00.0"), Gpu(1, "H100", (9, 0), pci="00000000:C1:00.0"))
    monkeypatch.setattr(cuda, "_unusable", {})
    with caplog.at_level(logging.WARNING, "llcuda_ffi"):
        cuda._check_gpus(bundle, GpuReport(gpus, "580", (13, 0)))
    assert "H100" in caplog.text
    assert "sm_86" in cuda.unusable("0000:c1:00.0")
    assert cuda.unusable("0000:01:00.0") == cuda.unusable("") == ""


def test_stub_driver_is_recognised(tmp_path: Path) -> None:
    """A libcuda that answers as a toolkit's stub does is named as such, in a process of its own."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = tmp_path / "stub.c"
    source.write_text("int cuInit(unsigned flags) { (void)flags; return 34; }\n")
    library = tmp_path / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    code = (
        f"import ctypes; ctypes.CDLL({str(library)!r})\n"
        "from llcuda_ffi.native import cuda\n"
        "from llcuda_ffi.errors import MissingLibrary\n"
        "try: cuda._check_driver()\n"
        "except MissingLibrary as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "stub" in done.stdout


def test_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA library that no place has: its name and the command."""
    monkeypatch.setattr(cuda.cuda_libraries, "find", lambda names: cuda.cuda_libraries.CudaLibraries({}, tuple(names)))
    with pytest.raises(ImportError, match=r"libcudart\.so\.13.*pip install 'llcuda-ffi\[cuda13\]'"):
        cuda._preload(["libcudart.so.13"], "v0.5.0-cuda13")


# --- placement ---


def gpu(free: int) -> Device:
    return Device("CUDA0", "RTX", "gpu", free, free)


def test_layers_that_fit(smollm2: Path) -> None:
    """All layers where there is room, some where there is less, none where there is none; the numbers are told."""
    all_of_them = placement.fit(smollm2, [gpu(8 * GIB)], Room(4096))
    assert all_of_them.n_gpu_layers is None
    assert "all 30 layers fit" in all_of_them.note
    some = placement.fit(smollm2, [gpu(2 * GIB)], Room(64 * 1024))
    assert some.n_gpu_layers is not None
    assert 0 < some.n_gpu_layers < 31
    assert placement.fit(smollm2, [gpu(256 << 20)], Room(4096)).n_gpu_layers == 0
    fewer = placement.fit(smollm2, [gpu(2 * GIB)], Room(80 * 1024))
    assert fewer.n_gpu_layers is not None
    assert fewer.n_gpu_layers < some.n_gpu_layers
    with_two = placement.fit(smollm2, [gpu(2 * GIB), gpu(2 * GIB)], Room(64 * 1024))
    assert with_two.n_gpu_layers is None or with_two.n_gpu_layers > some.n_gpu_layers


def test_placement_from_the_log() -> None:
    """What libllama says while it loads becomes layers and bytes by device."""
    found = from_log(
        [
            "load_tensors: layer   0 assigned to device CPU, is_swa = 0",
            "load_tensors: layer   1 assigned to device CUDA0, is_swa = 0",
            "load_tensors: layer   2 assigned to device CUDA0, is_swa = 0",
            "load_tensors:   CPU_Mapped model buffer size =   10.00 MiB",
            "load_tensors:        CUDA0 model buffer size =   20.50 MiB",
        ]
    )
    assert found.layers == ("CPU", "CUDA0", "CUDA0")
    assert found.by_device == {"CPU": 1, "CUDA0": 2}
    assert found.buffers == {"CPU_Mapped": 10 << 20, "CUDA0": int(20.5 * (1 << 20))}
    assert "2 layers on CUDA0" in str(found)


def test_code_of_own_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An own build's facts come from its library: architectures from the headers, CUDA from what it needs."""
    monkeypatch.setattr(select.elf, "read_names", lambda path: select.elf.ElfNames(None, ("libcublas.so.12",)))
    assert select.code_of_bundle(fake_bundle(tmp_path / "b", 75, 90)) == CudaCode("own", 12, (75, 90), (), None)
