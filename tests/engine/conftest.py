"""What the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2(tiny_llama: Path) -> Path:
    """A tiny llama in its place: how the engine works does not hang on what a model says."""
    return tiny_llama
