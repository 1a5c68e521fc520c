"""What cmake is told: this processor's features one by one, and the GPUs' architectures.

Features are named, not `-march=native`: so the CPU library carries its score and is refused on an older processor,
where a native one dies; and AVX512-FP16 stays off, which slows flash attention by up to 17 % and changes no result.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Collection, Sequence

from ...errors import BundleError
from ...hardware.gpu import GpuReport
from .source import Source
from .tools import Tools

# cmake option → the kernel's flags that it takes, and the compiler's flag for what is not in every compiler
X86 = {
    "GGML_SSE42": (("sse4_2",), ""),
    "GGML_AVX": (("avx",), ""),
    "GGML_F16C": (("f16c",), ""),
    "GGML_FMA": (("fma",), ""),
    "GGML_AVX2": (("avx2",), ""),
    "GGML_BMI2": (("bmi2",), ""),
    "GGML_AVX512": (("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"), "-mavx512vl"),
    "GGML_AVX512_VBMI": (("avx512_vbmi", "avx512vbmi"), "-mavx512vbmi"),
    "GGML_AVX512_VNNI": (("avx512_vnni",), "-mavx512vnni"),
    "GGML_AVX512_BF16": (("avx512_bf16",), "-mavx512bf16"),
    "GGML_AVX_VNNI": (("avx_vnni",), "-mavxvnni"),
    "GGML_AMX_TILE": (("amx_tile",), "-mamx-tile"),
    "GGML_AMX_INT8": (("amx_int8",), "-mamx-int8"),
}
ANY_OF = {"GGML_AVX512_VBMI"}  # kernels name it in one of two ways
# the kernel's flag → gcc's and zig's name of the extension
ARM = {
    "asimddp": ("dotprod", "dotprod"),
    "fphp": ("fp16", "fullfp16"),
    "i8mm": ("i8mm", "i8mm"),
    "bf16": ("bf16", "bf16"),
    "sve": ("sve", "sve"),
}
ALWAYS = (
    *("CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=ON", "GGML_NATIVE=OFF", "GGML_BACKEND_DL=ON", "GGML_OPENMP=OFF"),
    *("LLAMA_BUILD_COMMON=OFF", "LLAMA_BUILD_APP=OFF", "LLAMA_BUILD_TOOLS=OFF", "LLAMA_BUILD_MTMD=ON"),
    *("GGML_CCACHE=OFF", "LLAMA_ALL_WARNINGS=OFF"),
    # else the commit of whatever repository the cache lies in is stamped
    *("GIT_EXE=OFF", "GIT_EXECUTABLE=OFF", "LLAMA_BUILD_NUMBER=0"),
    # the default leaves the build's path and an empty element, which is the current folder
    *("CMAKE_BUILD_WITH_INSTALL_RPATH=ON", "CMAKE_INSTALL_RPATH=$ORIGIN"),
    *("CMAKE_SHARED_LINKER_FLAGS=-s", "CMAKE_MODULE_LINKER_FLAGS=-s"),
)
TUNE = "-mtune=native"  # zig takes it for leave to use every instruction of this processor
# As the original's T4 build; the graphs' and peer copies' switches are defaults now or gone.
CUDA = (
    *("GGML_CUDA=ON", "GGML_CUDA_FORCE_MMQ=OFF", "GGML_CUDA_FORCE_CUBLAS=OFF", "GGML_CUDA_FA=ON"),
    *("GGML_CUDA_FA_QUANTS=all", "GGML_CUDA_GRAPHS=ON", "GGML_CUDA_NCCL=OFF"),
)


def processor(
    machine: str, flags: Collection[str], lacks_flag: Callable[[str], bool], *, zig: bool
) -> tuple[list[str], list[str]]:
    """The options for a processor, and what it has that the compiler does not know."""
    if machine in ("aarch64", "arm64"):
        names = [pair[zig] for flag, pair in ARM.items() if flag in flags]
        base = ("generic+v8_2a" if zig else "armv8.2-a") if names else ("generic" if zig else "armv8-a")
        return [f"GGML_CPU_ARM_ARCH={'+'.join([base, *names])}"], []
    options, unknown = [], []
    for option, (needed, flag) in X86.items():
        there = (any if option in ANY_OF else all)(name in flags for name in needed)
        if there and flag and lacks_flag(flag):
            unknown.append(option.removeprefix("GGML_"))
            there = False
        options.append(f"{option}={'ON' if there else 'OFF'}")
    return options, unknown


def architectures(asked: str | None, report: GpuReport) -> list[str]:
    """CUDA architectures to build for: those asked for ("75;86;90"), else those of the GPUs here; empty for none.

    Raises:
        BundleError: What was asked for is no list of architectures.
    """
    if asked is None:
        return sorted({f"{major}{minor}" for major, minor in (gpu.compute for gpu in report.gpus)}, key=int)
    found = [part.strip() for part in re.split(r"[;,]", asked) if part.strip()]
    if not found or not all(re.fullmatch(r"\d{2,3}[af]?", part) for part in found):
        raise BundleError(f"--cuda-arch {asked!r} is no list of architectures: write 75;86;90")
    return found


def cuda(archs: Sequence[str], tools: Tools, report: GpuReport) -> list[str]:
    """The options for CUDA.

    Raises:
        BundleError: There is no nvcc, or its libraries are too new for the driver.
    """
    if tools.nvcc is None:
        raise BundleError(
            "there is no nvcc to build the CUDA library with: install the CUDA toolkit, or leave --cuda-arch"
        )
    try:
        said = subprocess.run([tools.nvcc, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BundleError(f"{tools.nvcc} cannot be run ({error})") from error
    found = re.search(r"release (\d+)\.(\d+)", said)
    if found and report.cuda and int(found[1]) > report.cuda[0]:
        raise BundleError(
            f"nvcc {found[1]}.{found[2]} is newer than the driver, which knows CUDA {report.cuda[0]}.{report.cuda[1]}: "
            "what it builds would not run here. Update the driver, or use a toolkit of its version"
        )
    return [
        *CUDA,
        f"CMAKE_CUDA_COMPILER={tools.nvcc}",
        f"CMAKE_CUDA_ARCHITECTURES={';'.join(f'{a}-real' for a in archs)}",
    ]


def common(source: Source, *, tune: bool) -> list[str]:
    """The options that every build has; paths of this machine stay out of the libraries.

    Args:
        tune: instructions are ordered for this processor; which ones there may be, the features say.
    """
    # quoted: what cmake is given as flags goes through a shell
    flags = shlex.quote(f"-ffile-prefix-map={source.path}=.") + (f" {TUNE}" if tune else "")
    return [*ALWAYS, "LLAMA_BUILD_COMMIT=unknown", f"CMAKE_C_FLAGS={flags}", f"CMAKE_CXX_FLAGS={flags}"]
