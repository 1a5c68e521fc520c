"""Sampling rows on several threads gives what sampling them one after another gives."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.engine.sampling.row_pool import RowPool

PROMPTS = [f"Story {i}. Once upon a time there was" for i in range(12)]
SETTINGS = {"max_tokens": 6, "seed": 7, "temperature": 0.9, "repeat_penalty": 1.1, "prefix_cache": False}


@pytest.fixture(scope="module")
def llm(trained: Path) -> Llama:
    return Llama(trained, n_ctx=256, n_parallel=12, prefix_cache=False)


def test_the_same_tokens(llm: Llama) -> None:
    """With the pool and without, seeded requests get the same tokens; the pool was really used."""
    scheduler = llm.engine.schedulers[0]
    scheduler.selection.rows = RowPool(llm.context, cores=1)
    assert not scheduler.selection.rows.pays(1000)
    expected = [c.token_ids for c in llm.generate(PROMPTS, **SETTINGS)]
    scheduler.selection.rows = pool = RowPool(llm.context, cores=6)
    assert pool.pays(12)
    assert [c.token_ids for c in llm.generate(PROMPTS, **SETTINGS)] == expected
    assert pool._calls
    pool.close()


def test_rows_with_and_without_the_pool_in_one_batch(llm: Llama) -> None:
    """Requests with log probabilities are sampled in their turn, beside the others."""
    scheduler = llm.engine.schedulers[0]
    params = [{"logprobs": 2} if i % 3 == 0 else {} for i in range(12)]
    found = []
    for cores in (1, 6):
        scheduler.selection.rows = RowPool(llm.context, cores=cores)
        scheduler.selection.rows._least = 4
        each = [SamplingParams(**SETTINGS, **p) for p in params]
        completions = llm.generate(PROMPTS, each)
        found.append([c.token_ids for c in completions])
        assert [c.logprobs is not None for c in completions] == ["logprobs" in p for p in params]
        scheduler.selection.rows.close()
    assert found[0] == found[1]


def test_after_an_exception_nothing_runs(llm: Llama) -> None:
    """Results come in order; an exception in a call, or in who reads the results, waits for the other calls."""
    pool = RowPool(llm.context, cores=5)
    ended: list[int] = []

    def call(i: int) -> int:
        if i == fails:
            raise ValueError(str(i))
        time.sleep(0.02 * (6 - i))
        ended.append(i)
        return i

    calls = [partial(call, i) for i in range(6)]
    fails = -1
    assert list(pool._run(calls)) == [0, 1, 2, 3, 4, 5]
    for fails in (0, 1, 4):
        ended.clear()
        with pytest.raises(ValueError, match=str(fails)), closing(pool._run(calls)) as found:
            list(found)
        assert sorted(ended) == [i for i in range(fails == 0, 6) if i != fails]
    fails = -1
    ended.clear()
    with pytest.raises(KeyboardInterrupt), closing(pool._run(calls)) as found:
        next(found)
        raise KeyboardInterrupt
    assert sorted(ended) == [0, 1, 2, 3, 4, 5]
    pool.close()


def test_close_ends_the_threads(llm: Llama) -> None:
    """No thread is left behind."""

    def threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("llcuda_ffi-rows")]

    for thread in threads():
        thread.join(10)
    assert threads() == []
