"""The C library."""

from __future__ import annotations

import platform
import sys


def glibc_version() -> tuple[int, ...] | None:
    """glibc's version, e.g. (2, 36); None on systems with another C library."""
    if sys.platform != "linux":
        return None
    name, version = platform.libc_ver()
    if name != "glibc":
        return None
    return tuple(int(part) for part in version.split(".") if part.isdigit())
