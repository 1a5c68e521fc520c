"""How much memory a model may take on this machine: of its GPU where there is one, else of the system."""

from __future__ import annotations

from pathlib import Path

from . import gpu

_MEMINFO = Path("/proc/meminfo")
_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def free_memory() -> tuple[int, str]:
    """Bytes that are free, and whose: of the roomiest GPU, else of the system within its cgroup."""
    gpus = gpu.survey().gpus
    if gpus:
        best = max(gpus, key=lambda one: one.memory_free)
        return best.memory_free, f"free on {best.name}"
    return free_system_memory(), "free system memory"


def free_system_memory(*, swap: bool = False) -> int:
    """Bytes that this process may still take, by kernel and cgroup, with `swap` those of it too; 0 if unknown."""
    free = 0
    names = ("MemAvailable:", "SwapFree:") if swap else ("MemAvailable:",)
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith(names):
                free += int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    for limit, used in _CGROUP:
        try:
            free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
        except (OSError, ValueError):
            continue  # no such cgroup, or no limit ("max")
    return free
