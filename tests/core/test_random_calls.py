"""Random sequences of Batch, Memory, Context, State and SamplerChain calls never end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..support.tiny_model import make_tiny_llama

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("first", [0, 1000])
def test_random_calls(first: int, tmp_path: Path) -> None:
    """60 sequences from fixed seeds: an exception of ours or a result for every call, and the model answers the
    same afterwards. More by hand: python -m tests.support.random_calls MODEL SEED COUNT."""
    model = tmp_path / "tiny.gguf"
    make_tiny_llama(model)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.random_calls", str(model), str(first), "60"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "survived 60" in done.stdout
