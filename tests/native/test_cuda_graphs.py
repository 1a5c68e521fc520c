"""When CUDA graphs are turned off, and that packs of texts do not repeat their shape where that matters."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Batch, Context, Embedder
from llcuda_ffi.embedding.packing import PackingQueue, open_contexts
from llcuda_ffi.native import cuda
from llcuda_ffi.native import cuda_graphs as graphs

from ..support.tiny_model import make_tiny_llama

SWITCH = "GGML_CUDA_DISABLE_GRAPHS"


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch as in a fresh process, and again afterwards."""
    monkeypatch.setenv(SWITCH, "1")  # so that it is put back
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr(graphs, "_in_use", False)
    monkeypatch.setattr(cuda, "_asked_for_graphs", False)


def test_models(smollm2: Path, minilm: Path, tmp_path: Path) -> None:
    """Quantized matrices are told from floats; vectors and embeddings that are only looked up do not count."""
    make_tiny_llama(tmp_path / "floats.gguf")
    assert graphs.multiplies_floats(tmp_path / "floats.gguf")
    assert graphs.multiplies_floats(minilm)  # the tests' file is F16
    assert not graphs.multiplies_floats(smollm2)


def test_off_where_they_may_be_wrong(smollm2: Path, minilm: Path) -> None:
    """Float matrices, no flash attention, embeddings: off; else they stay."""
    graphs.decide(smollm2, flash_attn=True, embeddings=False)
    assert cuda.in_force().graphs
    for path, flash, embeddings in ((smollm2, False, False), (smollm2, True, True), (minilm, True, False)):
        graphs.decide(path, flash_attn=flash, embeddings=embeddings)
        assert not cuda.in_force().graphs
        del os.environ[SWITCH]


def test_not_where_they_were_asked_for(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """configure(graphs=True) keeps them; the switch itself is understood."""
    monkeypatch.setattr(cuda, "_asked_for_graphs", True)
    graphs.decide(minilm, flash_attn=False, embeddings=True)
    assert cuda.in_force().graphs
    monkeypatch.setenv(SWITCH, "1")
    assert not cuda.in_force().graphs


def test_too_late(smollm2: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where a context computes with them already, the switch would change nothing: a warning, but not for texts."""
    graphs.used()
    with caplog.at_level(logging.WARNING, "llcuda_ffi"):
        graphs.decide(smollm2, flash_attn=False, embeddings=True)
        assert not caplog.records
        graphs.decide(smollm2, flash_attn=False, embeddings=False)
    assert "configure(graphs=False)" in caplog.text
    assert cuda.in_force().graphs


def test_packs(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of texts of one length: on a GPU every second one has a token more; the vectors are the same."""
    shapes: list[int] = []
    compute = Context._compute

    def spy(self: Context, call: object, pointer: object, batch: Batch) -> None:
        shapes.append(batch.n_tokens)
        compute(self, call, pointer, batch)

    monkeypatch.setattr(Context, "_compute", spy)
    texts = [np.arange(1000 + 7 * i, 1009 + 7 * i, dtype=np.int32) for i in range(36)]
    found = []
    with Embedder(minilm) as embedder:
        for spare in (0, 1):
            settings = {"n_ctx": 64, "n_batch": 64, "n_ubatch": 64, "n_seq_max": 8, "kv_unified": True}
            queue = PackingQueue(open_contexts(embedder.model, 1, embeddings=True, **settings), spare=spare)
            for *_, repeats in queue._free:
                assert not repeats.matter  # on a CPU
                repeats.matter = bool(spare)
            shapes.clear()
            found.append(np.stack(queue.compute(texts, 63)))
            single = [queue.compute([texts[0]], 63)[0] for _ in range(3)]
            assert max(float(np.abs(x - found[-1][0]).max()) for x in single) < 2e-2
            queue.close()
            assert shapes == ([63, 64, 63, 64, 63, 9, 10, 9, 10] if spare else [63] * 5 + [9] * 4)
    assert np.abs(found[0] - found[1]).max() < 2e-2
