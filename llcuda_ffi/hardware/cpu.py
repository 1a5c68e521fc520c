"""The processor: cores that this process may really use, and the instructions that it has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

# what the CPU variants of libggml are chosen by
_FEATURES = (
    *("sse4_2", "avx", "f16c", "fma", "bmi2", "avx2", "avx_vnni", "avx512f", "avx512_vbmi", "avx512_vnni"),
    *("avx512_bf16", "amx_tile", "amx_int8", "asimd", "asimddp", "fphp", "i8mm", "bf16", "sve"),
)


def usable_cores() -> int:
    """Cores by affinity and cgroup quota (a container's CPU limit), rounded up; at least 1."""
    cores = len(affinity())
    quota = cgroup_quota()
    if quota is not None:
        cores = min(cores, -int(-quota // 1))
    return max(1, cores)


def affinity() -> frozenset[int]:
    """The numbers of the cores that this process may run on."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return frozenset(range(os.cpu_count() or 1))


def cgroup_quota(proc: Path = PROC, root: Path = CGROUP) -> float | None:
    """The smallest CPU quota, in cores, of this process's cgroups and those above them; None without one."""
    return min(_quotas(proc, root), default=None)


def _quotas(proc: Path, root: Path) -> Iterator[float]:
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:  # version 2: one tree
            tree, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            tree = next((root / name for name in (controllers, "cpu") if (root / name).is_dir()), root / "cpu")
            read = _quota_v1
        else:
            continue
        # inside a container the path may be the host's: then its own tree's root holds the limit
        for folder in (tree / path.lstrip("/"), *(tree / path.lstrip("/")).parents):
            quota = read(folder)
            if quota is not None:
                yield quota
            if folder == tree:
                break


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cpu_name() -> str:
    """The processor's name; "unknown" where the system does not say."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def cpu_features() -> tuple[str, ...]:
    """Instruction sets that matter to libggml, by the kernel's names."""
    there = cpu_flags()
    return tuple(name for name in _FEATURES if name in there)


def cpu_flags() -> frozenset[str]:
    """Every instruction set and feature that the kernel names; empty where it names none."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _cpuinfo() -> list[str]:
    try:
        return (PROC / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
