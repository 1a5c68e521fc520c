"""What the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcuda_ffi import hub

from ..support.tiny_model import make_tiny_llama


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in its place: how the engine works does not hang on what a model says."""
    path = tmp_path_factory.mktemp("engine") / "tiny.gguf"
    make_tiny_llama(path, {"llama.context_length": 8192})
    return path


@pytest.fixture(scope="session")
def trained() -> Path:
    """The real small model, for what takes a real vocabulary or real text."""
    return hub.resolve("smollm2-135m", progress=False)
