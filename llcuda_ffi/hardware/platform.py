"""Where this runs: a machine of one's own, Colab or Kaggle; and its C library."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path


def hosted(environment: Mapping[str, str] | None = None) -> str:
    """ "colab", "kaggle" or "local"."""
    env = os.environ if environment is None else environment
    if "KAGGLE_KERNEL_RUN_TYPE" in env or "KAGGLE_URL_BASE" in env:
        return "kaggle"  # before Colab: its images hold parts of Colab's
    if "COLAB_RELEASE_TAG" in env or "COLAB_GPU" in env or Path("/content/sample_data").is_dir():
        return "colab"
    return "local"


def glibc_version() -> tuple[int, ...] | None:
    """glibc's version, e.g. (2, 36); None on systems with another C library."""
    if sys.platform != "linux":
        return None
    name, version = platform.libc_ver()
    if name != "glibc":
        return None
    return tuple(int(part) for part in version.split(".") if part.isdigit())
