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
LIMITS = {"smolvlm": 2e-3, "qwen2.5-vl": 5e-3, "qwen3-vl": 5e-3, "gemma3": 2e-2, "qwen2-audio": 2e-3}
SIZES = (1024, 16)  # of micro-batches: a whole image of Gemma's has 16 embeddings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the models."""
    return tmp_path_factory.mktemp("seers")


@pytest.fixture(scope="module")
def recorded(place: Path) -> dict[str, tuple[dict[str, Any], Any]]:
    """What was recorded of each family, and what it computes here."""
    bundles.ensure("v0.6.0-cpu", progress=False)
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


@pytest.mark.usefixtures("recorded")
def test_prompts_that_part_around_images(place: Path) -> None:
    """M-RoPE: what is reused of prompts that part before, in and after images computes what a fresh prompt does."""
    out = run_child(
        """
import sys
from pathlib import Path
import numpy as np
from llcuda_ffi import Llama
folder = Path(sys.argv[1]) / "qwen2.5-vl"
one = np.load(folder / "medium.npy")
two = np.ascontiguousarray(one[:84, ::-1][:, :112])
prompts = [
    ["the dog ", one, " ran"], ["the dog ", one, " said that there"], ["the dog ", one, two, " ran"],
    ["the dog ", two, " ran"], [one, " and then", two, " again"], [one, " and then", one, " again"], ["the dog sleeps"],
    ["the dog ", one, two, " ran away"], [one, two, " ran"],
]
with Llama(
    folder / "text.gguf", mmproj=folder / "mmproj.gguf", bundle="v0.6.0-cpu", n_ctx=512, n_parallel=3, n_ubatch=32,
    flash_attn=False, kv_type="f32",
) as llm:
    made = [llm.media_prompt(parts) for parts in prompts]
    settings = {"max_tokens": 4, "temperature": 0, "logprobs": llm.vocab.n_tokens, "ignore_eos": True}

    def rows(done):
        return [np.array([value for _, value in sorted(entry.top)]) for entry in done.logprobs]

    fresh = [rows(llm.generate(prompt, prefix_cache=False, **settings)) for prompt in made]
    llm.clear_cache()
    reused = 0
    for i in [*range(len(made)), *np.random.default_rng(1).integers(0, len(made), 16)]:
        done = llm.generate(made[i], **settings)
        reused += done.usage.cached_tokens > 70
        for row, want in zip(rows(done), fresh[i]):
            assert np.abs(row - want).max() < 1e-3, (i, np.abs(row - want).max())
    together = llm.generate(made, **settings)
    three = llm.generate(made[1], n=3, **settings)
    for done, want in [*zip(together, fresh), *((done, fresh[1]) for done in three)]:
        assert np.abs(rows(done)[0] - want[0]).max() < 1e-3
    print(reused)
""",
        place,
        timeout=200,
    )
    assert int(out) > 4
