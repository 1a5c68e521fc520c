"""Building llama.cpp: what cmake is told, what is refused before, what a failed or refused build leaves.

The trees here are small stand-ins that compile in a second; the real source takes minutes (docs/build.md).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from llcuda_ffi import bundles
from llcuda_ffi.bundles import InstalledBundle, own, store
from llcuda_ffi.bundles.build import build, options, source, tools
from llcuda_ffi.cli.bundle import command
from llcuda_ffi.errors import AbiMismatch, BundleError, BundleNotFound, DownloadError
from llcuda_ffi.hardware.gpu import Gpu, GpuReport

SAPPHIRE = [
    *("sse4_2", "avx", "f16c", "fma", "avx2", "bmi2", "avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    *("avx512_vbmi", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "avx512_fp16"),
]
TREE = """
cmake_minimum_required(VERSION 3.14)
set(LLAMA_VERSION_MAJOR 0)
set(LLAMA_VERSION_MINOR 5)
set(LLAMA_VERSION_PATCH 0)
project(tree C)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
foreach(name ggml-base ggml mtmd llama)
  add_library(${name} SHARED src/file.c)
endforeach()
target_link_libraries(llama ggml ggml-base)
add_library(ggml-cpu MODULE src/file.c)
"""
BUILD = """
import signal, sys
from pathlib import Path
from llcuda_ffi.bundles.build import build
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
build("mine", Path(sys.argv[1]))
"""
GGML = "set(GGML_VERSION_MAJOR 0)\nset(GGML_VERSION_MINOR 25)\nset(GGML_VERSION_PATCH 3)\n"


@pytest.fixture
def tree(tmp_path: Path, cache: Path) -> Path:
    """A source tree of the versions of b11227 whose libraries have no function of llama.cpp."""
    place = tmp_path / "my llama.cpp"
    for name, text in {
        "CMakeLists.txt": TREE,
        "ggml/CMakeLists.txt": GGML,
        "include/llama.h": "",
        "src/file.c": "int something(void) { return 1; }\n",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def features(flags: list[str], unknown: tuple[str, ...] = ()) -> tuple[set[str], list[str]]:
    """The options that are on, and what the compiler does not know."""
    found, lacking = options.processor("x86_64", flags, lambda flag: flag in unknown, zig=False)
    return {option.removesuffix("=ON") for option in found if option.endswith("=ON")}, lacking


def test_features_of_a_processor() -> None:
    """Each feature by itself; AVX-512 only with all its parts; never AVX512-FP16; what gcc lacks is told."""
    on, lacking = features(SAPPHIRE)
    assert on == set(options.X86)
    assert lacking == []
    assert not any("FP16" in option for option in options.X86)
    assert features(["avx512f", "avx512cd", "avx2"])[0] == {"GGML_AVX2"}
    on, lacking = features(SAPPHIRE, ("-mavxvnni", "-mavx512bf16"))
    assert on == set(options.X86) - {"GGML_AVX_VNNI", "GGML_AVX512_BF16"}
    assert lacking == ["AVX512_BF16", "AVX_VNNI"]
    assert features([])[0] == set()
    assert "GGML_NATIVE=OFF" in options.ALWAYS
    arm = options.processor("aarch64", ["asimd", "asimddp", "fphp"], lambda _: False, zig=False)[0]
    assert arm == ["GGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16"]
    zig = options.processor("aarch64", ["asimddp", "fphp"], lambda _: False, zig=True)[0]
    assert zig == ["GGML_CPU_ARM_ARCH=generic+v8_2a+dotprod+fullfp16"]


def test_cuda_options(tmp_path: Path) -> None:
    """Architectures from the GPUs or as asked for, as machine code; nvcc missing or too new is refused."""
    report = GpuReport(tuple(Gpu(i, "x", cc, 1, 1) for i, cc in enumerate(((9, 0), (7, 5)))), "580", (13, 0))
    assert options.architectures(None, report) == ["75", "90"]
    assert options.architectures("75;86,90", report) == ["75", "86", "90"]
    for wrong in ("", "sm_75", "7.5", "native", "75 -O0"):
        with pytest.raises(BundleError, match="75;86;90"):
            options.architectures(wrong, report)
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.48'\n")
    nvcc.chmod(0o755)
    have = tools.Tools("cmake", "ninja", (), dict(os.environ), ("cc",), str(nvcc))
    assert "CMAKE_CUDA_ARCHITECTURES=75-real;90-real" in options.cuda(["75", "90"], have, report)
    with pytest.raises(BundleError, match=r"nvcc 13\.0 is newer than the driver, which knows CUDA 12\.4"):
        options.cuda(["75"], have, GpuReport(report.gpus, "550", (12, 4)))
    with pytest.raises(BundleError, match="no nvcc"):
        options.cuda(["75"], tools.Tools("cmake", "ninja", (), {}), report)


@pytest.mark.parametrize(
    ("file", "text", "kind", "said"),
    [
        ("ggml/CMakeLists.txt", None, BundleError, "is no llama.cpp source tree: it has no ggml/CMakeLists.txt"),
        ("ggml/CMakeLists.txt", GGML.replace("25", "99"), AbiMismatch, r"ggml 0\.99\.3; .*nothing was built"),
        ("CMakeLists.txt", "", AbiMismatch, r"llama\.cpp \? with ggml 0\.25\.3"),
    ],
)
def test_wrong_trees(tree: Path, file: str, text: str | None, kind: type[Exception], said: str) -> None:
    """A folder of something else, and a llama.cpp of an unknown ABI, are refused before anything is compiled."""
    if text is None:
        (tree / file).unlink()
    else:
        (tree / file).write_text(text)
    with pytest.raises(kind, match=said):
        build("mine", tree, progress=False)
    assert bundles.installed() == []


def test_names_and_places(tree: Path, tmp_path: Path) -> None:
    """Names of known bundles and names that are paths are refused; so is a folder that cmake cannot be given."""
    for name in ("v0.5.0-cpu", "../x", "own-1", "", "a b", "in-use", "native.lock"):
        with pytest.raises(BundleError, match="cannot be a build's name"):
            build(name, tree, progress=False)
    with pytest.raises(BundleError, match="move the source elsewhere"):
        source.read(shutil.move(tree, tmp_path / "a;b") and tmp_path / "a;b")


def test_compiler_that_is_not_there(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CC that names no program is one sentence."""
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BundleError, match=r"CC or CXX is 'no-such-compiler'"):
        build("mine", tree, progress=False)


needs_compiler = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("cmake", "ninja", "cc", "c++")), reason="needs cmake, ninja and a compiler"
)


def test_old_cmake(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cmake that is too old is as good as none: its wheel is fetched, which offline is one sentence."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cmake").write_text("#!/bin/sh\necho cmake version 3.10.2\n")
    (tmp_path / "bin" / "cmake").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LLCUDA_FFI_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"cmake==\d+\..* is not in the cache and LLCUDA_FFI_OFFLINE is set"):
        build("mine", tree, progress=False)


def test_full_disk(tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is said before anything is fetched or compiled."""
    monkeypatch.setattr("llcuda_ffi.bundles.build.run.DISK_NEEDED", 1 << 60)
    with pytest.raises(BundleError, match=r"a build needs \d+ MB in .*builds/mine, \d+ are free there"):
        build("mine", tree, progress=False)
    assert not any((cache / "builds" / "mine").iterdir())


@needs_compiler
def test_failed_compilation(tree: Path, cache: Path) -> None:
    """The error is in the message, the whole log is kept, and after the repair the build goes on."""
    (tree / "src" / "file.c").write_text("int something(void) { return oops; }\n")
    with pytest.raises(BundleError, match=r"compiling failed: .*error: .*oops.*; the whole output is in .*log\.txt"):
        build("mine", tree, progress=False)
    assert "oops" in (cache / "builds" / "mine" / "log.txt").read_text()
    (tree / "src" / "file.c").write_text("int something(void) { return 1; }\n")
    # what it compiled is no llama.cpp: the guard refuses it, and nothing is installed
    with pytest.raises(AbiMismatch, match=r"lacks llama_"):
        build("mine", tree, progress=False)
    assert bundles.installed() == []
    assert not (cache / "bundles" / "mine").exists()


@needs_compiler
def test_foreign_flags_stay_out(tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CFLAGS of conda and the like are not passed on; the features chosen here are."""
    for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_GENERATOR", "SOURCE_DATE_EPOCH"):
        monkeypatch.setenv(name, "-no-such-flag-at-all")
    with pytest.raises(AbiMismatch):
        build("mine", tree, progress=False)
    first = (cache / "builds" / "mine" / "log.txt").read_text().splitlines()[0]
    assert "-DGGML_BACKEND_DL=ON" in first
    assert "no-such-flag" not in first


@needs_compiler
def test_interrupted_build(tree: Path, cache: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the compilers too; nothing is installed, and the next run goes on."""
    os.mkfifo(tmp_path / "fifo")
    compiler = tmp_path / "cc"
    # compiles at once while cmake tries it, and then waits
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *file.c*) read line < {tmp_path}/fifo;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tree)],
        env={**os.environ, "CC": str(compiler)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("compiling"):
            break
    with (tmp_path / "fifo").open("w"):  # returns when a compiler waits at the other end
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode != 0
    assert "KeyboardInterrupt" in said
    assert bundles.installed() == []
    with pytest.raises(AbiMismatch):
        build("mine", tree, progress=False)


@needs_compiler
def test_two_builds_at_once(tree: Path, tmp_path: Path) -> None:
    """The second of one name says that it waits, and builds after the first."""
    os.mkfifo(tmp_path / "fifo")
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *file.c*) read line < {tmp_path}/fifo;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    command = [sys.executable, "-c", BUILD, str(tree)]
    both = []
    for environment in ({**os.environ, "CC": str(compiler)}, dict(os.environ)):
        both.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        assert both[-1].stderr is not None
        line = next(line for line in both[-1].stderr if line.startswith("compiling") or "waiting" in line)
    assert "building bundle mine" in line
    assert both[1].poll() is None
    while both[0].poll() is None:
        try:  # lets a compiler go on that waits at the other end
            os.close(os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            time.sleep(0.01)
    for process in both:
        _, said = process.communicate(timeout=60)
        assert "AbiMismatch" in said
    assert bundles.installed() == []


def test_used_by_name(cache: Path, bundle_b7698: InstalledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build installs is used by its name, listed, chosen for all processes, and kept by prune."""
    run = CliRunner().invoke
    entry = store.bundles_folder() / "mine"
    entry.parent.mkdir(parents=True)
    built = own.install("mine", bundle_b7698.path, entry, source="built from a test")
    assert built.profile == "b7698"
    assert bundles.ensure("mine", progress=False) == built
    assert bundles.selected() is None
    assert run(command, ["use", "mine"]).output == "in use: mine\n"
    assert bundles.ensure(progress=False) == built
    assert run(command, ["path"]).output == f"{entry}\n"
    assert "* mine" in run(command, ["list"]).output
    assert store.prune() == []
    monkeypatch.setenv("LLCUDA_FFI_BUNDLE", "v0.5.0-cpu")
    assert bundles.chosen_name() == "v0.5.0-cpu"
    monkeypatch.delenv("LLCUDA_FFI_BUNDLE")
    assert run(command, ["use", "--auto"]).output == "in use: v0.5.0-cpu\n"
    with pytest.raises(BundleNotFound, match="nothing"):
        bundles.use("nothing")
    assert run(command, ["use"]).exit_code == 2
