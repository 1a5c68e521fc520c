"""CPU cores that this process may really use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores by affinity; at least 1."""
    return max(1, len(os.sched_getaffinity(0)))
