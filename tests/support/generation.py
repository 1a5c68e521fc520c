"""What the oldest generation of libraries lacks, for the suite that runs on it (LLCUDA_FFI_BUNDLE=b7698-cpu)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from llcuda_ffi import bundles


def oldest() -> bool:
    """Whether this run uses it."""
    return bundles.selected() == "b7698-cpu"


newer = pytest.mark.skipif(oldest(), reason="b7698 lacks it")


def known_kinds(names: Iterable[str]) -> list[Any]:
    """Parameters of a test: tiny architectures, of which b7698 does not know qwen35."""
    return [pytest.param(name, marks=newer) if name == "qwen35" else name for name in names]
