"""Cores, GPUs, C library, hosts: read from what the system says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi.errors import InvalidRequest, LoadError
from llcuda_ffi.hardware import cpu, cuda_libraries
from llcuda_ffi.hardware.gpu import Gpu, survey, visible
from llcuda_ffi.hardware.platform import glibc_version, hosted
from llcuda_ffi.native import cuda

GPUS = tuple(Gpu(i, f"GPU {i}", (8, 6), uuid=f"GPU-{i}aaa") for i in range(3))


def _tree(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(membership)
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return proc, root


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/not/visible\n", {"cpu.max": "100000 100000"}, 1.0),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "garbage"}, None),
        ("3:cpuset:/x\n", {}, None),
    ],
)
def test_cgroup_quota(membership: str, files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    """The smallest quota of the process's cgroup and its parents counts, in both versions of cgroups."""
    assert cpu.cgroup_quota(*_tree(tmp_path, membership, files)) == expected


def test_usable_cores_follow_affinity() -> None:
    """A process bound to one core counts one."""
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{one}])\n"
        "from llcuda_ffi.hardware.cpu import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "1"
    assert 1 <= cpu.usable_cores() <= len(os.sched_getaffinity(0))


def test_processor_and_c_library() -> None:
    """This machine's processor has a name and features; its C library a version."""
    assert cpu.cpu_name()
    assert isinstance(cpu.cpu_features(), tuple)
    version = glibc_version()
    assert version is None or version >= (2, 17)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        ("GPU-1", [1]),
        ("1,7,2", [1]),
        ("0,0", [0]),
        ("-1", []),
        ("GPU-", []),
    ],
)
def test_visible_devices(setting: str | None, expected: list[int]) -> None:
    """CUDA_VISIBLE_DEVICES is read as CUDA reads it: up to the first entry that is not one GPU."""
    assert [gpu.index for gpu in visible(GPUS, setting)] == expected


def test_a_machine_without_gpu_says_why() -> None:
    """Without a GPU the survey is empty and has a reason; with one it has a driver."""
    found = survey()
    assert found.gpus or found.reason
    assert not found.gpus or found.driver


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLAB_GPU": "1"}, "kaggle"),
        ({"COLAB_RELEASE_TAG": "r"}, "colab"),
        ({}, "local"),
    ],
)
def test_hosts(environment: dict[str, str], expected: str) -> None:
    """Colab and Kaggle are known by their variables."""
    assert hosted(environment) == expected


def _libraries(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_runtime_libraries_in_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of NVIDIA's wheels are searched without importing anything; one place that has all comes first."""
    site = tmp_path / "site"
    cudart = _libraries(site / "nvidia/cuda_runtime/lib", "libcudart.so.12")
    cublas = _libraries(site / "nvidia/cublas/lib", "libcublas.so.12", "libcublasLt.so.12")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(cuda_libraries, "_toolkits", list)
    monkeypatch.setattr(cuda_libraries, "linker_cache", dict)
    found = cuda_libraries.find(cuda_libraries.sonames(12))
    assert found.paths == {
        "libcudart.so.12": cudart / "libcudart.so.12",
        "libcublasLt.so.12": cublas / "libcublasLt.so.12",
        "libcublas.so.12": cublas / "libcublas.so.12",
    }
    assert found.origin == "wheels"
    assert cuda_libraries.find(cuda_libraries.sonames(13)).missing == cuda_libraries.sonames(13)


def test_cublas_and_cublaslt_come_from_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toolkit with half of cuBLAS does not lend it: the pair is taken where both are; a missing one is named."""
    toolkit = tmp_path / "cuda"
    _libraries(toolkit / "lib64", "libcudart.so.13", "libcublas.so.13")
    whole = _libraries(tmp_path / "usr", "libcublas.so.13", "libcublasLt.so.13")
    monkeypatch.setattr(cuda_libraries, "_package_folders", lambda name: [])
    monkeypatch.setattr(cuda_libraries, "_toolkits", lambda: [toolkit])
    known = {name: whole / name for name in ("libcublas.so.13", "libcublasLt.so.13")}
    monkeypatch.setattr(cuda_libraries, "linker_cache", lambda: known)
    found = cuda_libraries.find(cuda_libraries.sonames(13))
    assert found.paths["libcublas.so.13"].parent == found.paths["libcublasLt.so.13"].parent == whole
    assert found.paths["libcudart.so.13"].parent == toolkit / "lib64"
    monkeypatch.setattr(cuda_libraries, "linker_cache", dict)
    assert cuda_libraries.find(cuda_libraries.sonames(13)).missing == ("libcublasLt.so.13", "libcublas.so.13")
    assert "llcuda-ffi[cuda13]" in cuda_libraries.command_for("libcublasLt.so.13")


def test_switches_are_set_and_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each switch becomes the variable that libggml-cuda reads; switched back it is gone, as it tests for presence."""
    for variable in (*(v for v, _ in cuda._FLAGS.values()), *cuda._VALUES.values()):
        monkeypatch.setenv(variable, "x")
        monkeypatch.delenv(variable)
    assert cuda.in_force() == cuda.CudaOptions(
        graphs=True, graph_opt=False, fusion=True, pinned=True, peer_access=False, unified_memory=False
    )
    now = cuda.configure(
        graphs=False, unified_memory=True, virtual_devices=2, cublas_compute_type="f32", visible_devices="0"
    )
    assert os.environ["GGML_CUDA_DISABLE_GRAPHS"] == os.environ["GGML_CUDA_ENABLE_UNIFIED_MEMORY"] == "1"
    assert (now.graphs, now.unified_memory, now.virtual_devices, now.visible_devices) == (False, True, 2, "0")
    assert cuda.configure(graphs=True).graphs is True
    assert "GGML_CUDA_DISABLE_GRAPHS" not in os.environ


@pytest.mark.parametrize(
    "bad", [{"graphs": 1.5}, {"virtual_devices": 0}, {"cublas_compute_type": "int8"}, {"grafs": True}]
)
def test_bad_switches(bad: dict[str, object]) -> None:
    """A wrong name or value is refused before anything is set."""
    with pytest.raises(InvalidRequest):
        cuda.configure(**bad)


def test_switches_after_loading_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once libggml-cuda is in the process, changing a switch would change nothing: an error."""
    monkeypatch.setattr(cuda.guard, "mapped", lambda stem: [Path("libggml-cuda.so")])
    with pytest.raises(LoadError, match="loaded already"):
        cuda.configure(graphs=False)
