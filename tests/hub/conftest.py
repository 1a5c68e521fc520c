"""What the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.hub import Hub
from ..support.loopback import Loopback


@pytest.fixture
def own_hub(loopback: Loopback, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", loopback.url)
    monkeypatch.setenv("HF_HOME", str(cache / "hf-home"))
    return Hub(loopback)
