"""Thread pools of the CPU backend."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from llcuda_ffi import Batch, Context, Model
from llcuda_ffi.core.threadpool import Threadpool
from llcuda_ffi.errors import InvalidRequest

from ..support.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("threadpool") / "tiny.gguf"
    make_tiny_llama(path)
    return Model.load(path)


def _logits(context: Context) -> np.ndarray:
    batch = Batch(8)
    batch.extend([3, 5, 7, 9])
    context.memory.clear()
    context.decode(batch)
    return context.logits()


def test_attached_pool_computes_the_same(model: Model) -> None:
    """With a pool, without it again, and with a pool shared by two contexts: the same logits."""
    with Context(model, n_ctx=64, n_threads=2) as one, Context(model, n_ctx=64, n_threads=2) as other:
        want = _logits(one)
        pool = Threadpool(2, poll=0)
        pool.attach(one)
        pool.attach(other)
        assert np.array_equal(_logits(one), want)
        assert np.array_equal(_logits(other), want)
        pool.detach(one)
        assert np.array_equal(_logits(one), want)


def test_pool_outlives_its_contexts(model: Model) -> None:
    """Closing the pool closes the contexts on it first; a dropped pool lives while its context does."""
    context = Context(model, n_ctx=64, n_threads=2)
    pool = Threadpool(2)
    pool.attach(context)
    pool.close()
    assert context.closed
    context = Context(model, n_ctx=64, n_threads=2)
    Threadpool(2).attach(context)
    gc.collect()
    assert np.isfinite(_logits(context)).all()
    context.close()


def test_bad_values(model: Model) -> None:
    """Values out of range, and a context with more threads than the pool."""
    for settings in (
        {"n_threads": 0},
        {"n_threads": 513},
        {"n_threads": 1, "poll": 101},
        {"n_threads": 1, "cpus": [512]},
    ):
        with pytest.raises(InvalidRequest):
            Threadpool(**settings)
    with Context(model, n_ctx=64, n_threads=2) as context, pytest.raises(InvalidRequest, match="threads"):
        Threadpool(1).attach(context)
