"""Batches of prompts and packs of texts do not repeat their shape where that matters; results stay the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Batch, Context, Embedder, Llama
from llcuda_ffi.embedding.packing import PackingQueue, open_contexts
from llcuda_ffi.native import cuda

Shapes = list[tuple[int, int]]


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Shapes:
    """Tokens and outputs of every batch that is computed."""
    found: Shapes = []
    compute = Context._compute

    def spy(self: Context, call: object, pointer: object, batch: Batch) -> None:
        found.append((batch.n_tokens, int(batch.output[: batch.n_tokens].sum())))
        compute(self, call, pointer, batch)

    monkeypatch.setattr(Context, "_compute", spy)
    return found


def _repeats(shapes: Shapes) -> list[tuple[int, int]]:
    """Shapes with tokens that have no output, as the batch before had them."""
    return [a for a, b in itertools.pairwise(shapes) if a == b and a[0] > a[1]]


def test_prompts(smollm2: Path, shapes: Shapes) -> None:
    """Requests of one length one after another, and chunks of long ones: on a GPU no two batches are alike."""
    found = []
    with Llama(smollm2, n_ctx=512, n_parallel=4, n_ubatch=64) as llm:
        assert not llm._driver.schedulers[0]._planner.repeats.matter  # on a CPU
        for matter in (False, True):
            llm._driver.schedulers[0]._planner.repeats.matter = matter
            shapes.clear()
            one = [llm.generate("Tell me more", max_tokens=1, logprobs=2, prefix_cache=False) for _ in range(4)]
            long = llm.generate(["word " * 300] * 2, max_tokens=4, temperature=0, prefix_cache=False)
            assert bool(_repeats(shapes)) is not matter
            both = llm.generate(["One", "Two"], max_tokens=6, temperature=0, ignore_eos=True, prefix_cache=False)
            assert shapes.count((2, 2)) == 6  # steps of generation may repeat: they are faster so
            found.append([c.token_ids for c in (*long, *both)] + [c.logprobs[0].token for c in one])
    assert found[0] == found[1]


def test_packs(minilm: Path, shapes: Shapes) -> None:
    """Packs of texts of one length: on a GPU every second one has a token more; the vectors are the same."""
    texts = [np.arange(1000 + 7 * i, 1009 + 7 * i, dtype=np.int32) for i in range(36)]
    with Embedder(minilm) as embedder:
        found = []
        for spare in (0, 1):
            settings = {"n_ctx": 64, "n_batch": 64, "n_ubatch": 64, "n_seq_max": 8, "kv_unified": True}
            queue = PackingQueue(open_contexts(embedder.model, 1, embeddings=True, **settings), spare=spare)
            for *_, repeats in queue._free:
                repeats.matter = bool(spare)
            shapes.clear()
            found.append(np.stack(queue.compute(texts, 63)))
            single = [queue.compute([texts[0]], 63)[0] for _ in range(3)]
            assert max(float(np.abs(x - found[-1][0]).max()) for x in single) < 2e-2
            queue.close()
            last = (9, 9)
            expected = [(63, 63)] * 5 + [last] * 4
            if spare:
                expected = [(63, 63), (64, 64), (63, 63), (64, 64), (63, 63), last, (10, 10), last, (10, 10)]
            assert shapes == expected
    assert (found[0] * found[1]).sum(1).min() / (found[0] ** 2).sum(1).min() > 0.99
    assert np.abs(found[0] - found[1]).max() < 2e-2


def test_without_graphs(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch that turns the recording off is understood."""
    monkeypatch.setenv("GGML_CUDA_DISABLE_GRAPHS", "1")
    assert not cuda.in_force().graphs
    monkeypatch.delenv("GGML_CUDA_DISABLE_GRAPHS")
    assert cuda.in_force().graphs
