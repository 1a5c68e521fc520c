"""Prefixes kept for later requests: in the KV cache, in the host's memory, in files; and a KV cache that is full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi import Llama
from llcuda_ffi.errors import InvalidRequest

from ..support.tiny_architectures import TINY, lively

F32: dict[str, Any] = {"kv_type": "f32", "n_threads": 1}
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def test_prefix_cache(llm: Llama) -> None:
    """A prompt that continues an earlier one computes only the new tokens; off, it computes all."""
    base = "The following is a long system prompt that every request of this test begins with. " * 2
    llm.generate(base + "A", max_tokens=2)
    again = llm.generate(base + "B", max_tokens=2, temperature=0)
    assert again.usage.cached_tokens >= again.usage.prompt_tokens - 3
    off = llm.generate(base + "B", max_tokens=2, temperature=0, prefix_cache=False)
    assert off.usage.cached_tokens == 0
    assert off.token_ids == again.token_ids
    llm.clear_cache()
    assert llm.generate(base + "B", max_tokens=2).usage.cached_tokens == 0


def test_saved_state(smollm2: Path, tmp_path: Path) -> None:
    """Kept prefixes survive in a file: another Llama continues them without computing, with the same text."""
    prompt = "A rather long beginning that is worth keeping from one process to the next one. " * 2
    file = tmp_path / "state"
    with Llama(smollm2, n_ctx=256, n_parallel=2) as llm:
        want = llm.generate(prompt, max_tokens=6, temperature=0)
        assert llm.save_state(file) >= want.usage.prompt_tokens
    with Llama(smollm2, n_ctx=256, n_parallel=2) as llm:
        assert llm.load_state(file) >= want.usage.prompt_tokens
        got = llm.generate(prompt, max_tokens=6, temperature=0)
        assert got.usage.cached_tokens == want.usage.prompt_tokens - 1
        assert got.text == want.text
        for bad in (file.read_bytes()[:-5], b"nothing", file.read_bytes()[:200] + b"x" + file.read_bytes()[201:]):
            (tmp_path / "bad").write_bytes(bad)
            with pytest.raises(InvalidRequest):
                llm.load_state(tmp_path / "bad")
        with pytest.raises(InvalidRequest):
            llm.load_state(tmp_path / "none")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose answers show every token before them."""
    path = tmp_path_factory.mktemp("tiny") / "model"
    lively(TINY["llama"]()).write(path)
    return path


def test_host_tier(tiny: Path) -> None:
    """With a host budget, a prefix pushed out of the KV cache by another request comes back; within the budget."""
    prompts = [[3 + i, *(3 + (i + 1) * k % 240 for k in range(179))] for i in range(3)]
    with Llama(tiny, n_ctx=512, n_parallel=1, host_cache_bytes="1MB", **F32) as llm:
        first = [llm.generate(p, max_tokens=4, **GREEDY) for p in prompts]
        again = [llm.generate(p, max_tokens=4, **GREEDY) for p in prompts]
        assert [r.token_ids for r in again] == [r.token_ids for r in first]
        assert len({tuple(r.token_ids) for r in first}) == 3
        assert all(r.usage.cached_tokens == r.usage.prompt_tokens - 1 for r in again), [r.usage for r in again]
        assert 0 < llm.metrics().host_cache_bytes <= 1_000_000
        llm.clear_cache()
        assert llm.metrics().host_cache_bytes == 0
    for budget, kept in ((0, 0), ("auto", 179), ("1MB", 179)):
        with Llama(tiny, n_ctx=512, n_parallel=1, device="cpu", host_cache_bytes=budget, **F32) as llm:
            for p in prompts:
                llm.generate(p, max_tokens=1)
            assert llm.generate(prompts[0], max_tokens=1).usage.cached_tokens == kept
            assert (llm.metrics().host_cache_bytes > 0) == (kept > 0)
            prefixes = [scheduler.prefixes for scheduler in llm.engine.schedulers]
        assert all(not len(one.host) for one in prefixes)


def test_copied_prefix(tiny: Path) -> None:
    """A prefix that another slot holds is copied, with and without a unified KV cache, and gives the same text."""
    base = [3 + 7 * k % 240 for k in range(130)]
    prompts = [[*base, 10 + 40 * i, 7 + 50 * i] for i in range(4)]
    for kv_cells in (None, 1536):
        with Llama(tiny, n_ctx=512, n_parallel=3, kv_cells=kv_cells, **F32) as llm:
            cold = [llm.generate(p, max_tokens=6, prefix_cache=False, **GREEDY).token_ids for p in prompts]
            assert len(set(map(tuple, cold))) == 4
            llm.generate(prompts[0], max_tokens=1)
            warm = llm.generate(prompts, max_tokens=6, **GREEDY)
            assert [r.token_ids for r in warm] == cold
            assert all(r.usage.cached_tokens >= 130 for r in warm), [r.usage for r in warm]


def test_full_kv_cache_loses_no_request(tiny: Path) -> None:
    """With fewer KV cells than the requests need, some wait; all get their own answer."""
    prompts = [[20 + 30 * i, 7, 9 + i] for i in range(4)]
    with Llama(tiny, n_ctx=256, n_parallel=4, kv_cells=256, **F32) as llm:
        alone = [llm.generate(p, max_tokens=90, **GREEDY).token_ids for p in prompts]
        assert len(set(map(tuple, alone))) == 4
        llm.clear_cache()
        results = llm.generate(prompts * 2, max_tokens=90, **GREEDY)
        assert [len(r.token_ids) for r in results] == [90] * 8
        # cells in another order round otherwise, so a close choice may fall the other way later on
        assert [r.token_ids[:20] for r in results] == [ids[:20] for ids in alone * 2]
