"""Tiny models that see or hear compute what transformers was recorded to compute: tests/data/seers.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import bundles

from ..support.child_process import run_child
from ..support.seer_weights import MEDIA, write_seer

# largest difference of the first token's log probabilities, in units of their spread: libmtmd's GELU and its
# convolutions compute in half precision
LIMITS = {"smolvlm": 2e-3, "qwen2.5-vl": 5e-3, "qwen3-vl": 3e-2, "gemma3": 2e-2, "qwen2-audio": 2e-3}
SIZES = (1024, 16)  # of micro-batches: a whole image of Gemma's has 16 embeddings


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Any]]:
    """What was recorded of each family, and what it computes here."""
    bundles.ensure("v0.6.0-cpu", progress=False)
    place = tmp_path_factory.mktemp("seers")
    recipes = json.loads((Path(__file__).parents[1] / "data" / "seers.json").read_text(encoding="utf-8"))
    for name, recipe in recipes.items():
        (place / name).mkdir()
        write_seer(recipe, place / name)
        np.save(place / name / "medium.npy", MEDIA[name]())
    code = "import sys; from pathlib import Path; from tests.support.seer_worker import compute\n"
    code += f"for place in sorted(Path(sys.argv[1]).iterdir()): compute(place, {list(SIZES)})"
    run_child(code, place, timeout=200)
    return {name: (recipe, np.load(place / name / "ours.npz")) for name, recipe in recipes.items()}


@pytest.mark.parametrize("name", LIMITS)
def test_as_recorded(recorded: dict[str, tuple[dict[str, Any], Any]], name: str) -> None:
    """Whole, in pieces of one micro-batch, and again from what is kept; greedy tokens while the choice is clear."""
    recipe, ours = recorded[name]
    want = np.array(recipe["logprobs"])
    limit = LIMITS[name] * want.std()
    assert int((ours["tokens"] < 0).sum()) == recipe["n_media"]
    for size in SIZES:
        for kind in ("logprobs", "again"):
            assert np.abs(ours[f"{kind}_{size}"] - want).max() < limit, (size, kind)
        assert ours[f"cached_{size}"] == len(ours["tokens"]) - 1, "the second time is not from what was kept"
        for token, best, gap in zip(ours[f"greedy_{size}"], recipe["greedy"], recipe["gaps"], strict=True):
            if gap < 3 * limit:
                break
            assert token == best
