"""How many CPU cores this process could have had: what it used, and what nobody used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, process_time

from .cpu import affinity

_STAT = Path("/proc/stat")


Reading = tuple[float, float, float, float]


def _reading(
    cpus: set[str], stat: Callable[[], str], clock: Callable[[], float], cpu_clock: Callable[[], float]
) -> Reading | None:
    """Wall clock, own CPU time, idle time and total time (in ticks) of the CPUs that this process may use."""
    idle = total = 0.0
    try:
        for line in stat().splitlines():
            name, _, rest = line.partition(" ")
            if not name.startswith("cpu"):
                break
            if name in cpus:
                # user nice system idle iowait irq softirq steal; guest time is in user already
                fields = [int(field) for field in rest.split()[:8]]
                idle += fields[3] + fields[4]
                total += sum(fields)
    except (OSError, ValueError, IndexError):
        return None
    return clock(), cpu_clock(), idle, total


def _own_cpus() -> set[str]:
    return {f"cpu{n}" for n in affinity()}


def _system_stat() -> str:
    return _STAT.read_text(encoding="ascii")


_AT_IMPORT = _reading(_own_cpus(), _system_stat, monotonic, process_time)  # before a model is loaded


class CpuSupply:
    """Measures over the time between two calls of `available`; the first call, since this module was imported.

    A process that is alone has what it uses and what is idle; where others run as well, the share that they take is
    missing from the sum, whatever the process itself is doing. That needs no trial and no knowledge of the work.
    """

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        cpu_clock: Callable[[], float] = process_time,
        stat: Callable[[], str] | None = None,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._stat = stat or _system_stat
        self._cpus = _own_cpus()
        self._tick = 1.0 / os.sysconf("SC_CLK_TCK") if _STAT.exists() else 1.0
        self._last = self._read() if stat else _AT_IMPORT

    def _read(self) -> Reading | None:
        return _reading(self._cpus, self._stat, self._clock, self._cpu_clock)

    def restart(self) -> None:
        """Measure from now on."""
        self._last = self._read()

    def available(self) -> float | None:
        """Cores since the last call; None where the system's figures are missing or cannot be right (sandboxes)."""
        before, now = self._last, self._read()
        self._last = now
        if before is None or now is None:
            return None
        wall, own, idle, total = (b - a for a, b in zip(before, now, strict=True))
        idle, total, cores = idle * self._tick, total * self._tick, len(self._cpus)
        if wall <= 0 or abs(total - cores * wall) > 0.25 * cores * wall + 2 * cores * self._tick:
            return None
        return (own + idle) / wall
