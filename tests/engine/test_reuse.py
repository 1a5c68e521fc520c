"""Reuse by proof: whatever is kept, copied, saved and restored, the answer is that of a cold run.

`LLCUDA_FFI_REUSE_STEPS=5000 python -m pytest tests/engine/test_reuse.py` tries longer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Llama, Model, lora
from llcuda_ffi.core.adapter import set_control_vector
from llcuda_ffi.core.memory import MemoryKind
from llcuda_ffi.errors import DecodeError, InvalidRequest, UnsupportedModel
from llcuda_ffi.params import ContextParams, ModelParams

from ..support.generation import known_kinds, newer
from ..support.random_reuse import RandomReuse, tiny_adapter
from ..support.tiny_architectures import TINY, lively

STEPS = int(os.environ.get("LLCUDA_FFI_REUSE_STEPS", "14"))
SMALL_WINDOW = ContextParams(swa_full=False)
HOST = {"n_parallel": 2, "host_cache_bytes": 1 << 22}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each kind of memory."""
    folder = tmp_path_factory.mktemp("kinds")
    for name in KINDS:
        lively(TINY[name]()).write(folder / name)
    return folder


KINDS = {
    "llama": MemoryKind.FULL,
    "deepseek2": MemoryKind.FULL,
    "gemma3": MemoryKind.WINDOW,
    "mamba": MemoryKind.RECURRENT,
    "lfm2": MemoryKind.HYBRID,
    "lfm2-window": MemoryKind.HYBRID,
    "granite-hybrid": MemoryKind.HYBRID,
    "qwen35": MemoryKind.HYBRID,
}

RUNS: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "default", {}) for name in KINDS),
    *((name, "host", HOST) for name in ("llama", "deepseek2", "gemma3", "mamba", "lfm2-window", "granite-hybrid")),
    *((name, "cells", {"kv_cells": 900}) for name in ("llama", "gemma3", "lfm2", "lfm2-window")),
    ("gemma3", "small window", {"context_params": SMALL_WINDOW}),
    ("gemma3", "small window, cells", {"context_params": SMALL_WINDOW, "kv_cells": 900}),
    ("gemma3", "small window, host", {"context_params": SMALL_WINDOW, **HOST}),
    ("gemma3", "cells, host", {"kv_cells": 600, **HOST}),
    ("llama", "cells, host", {"kv_cells": 600, **HOST}),
    *((name, "drafts", {"draft": "ngram"}) for name in ("llama", "mamba", "lfm2-window", "qwen35")),
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [pytest.param(n, s, id=f"{n}, {w}", marks=newer if n == "qwen35" else ()) for n, w, s in RUNS],
)
def test_random_requests(models: Path, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """Requests that share beginnings give the log probabilities of a cold run, whatever was reused."""
    run = RandomReuse(models / name, 1, **settings)
    try:
        tally = run.run(STEPS, tmp_path)
    finally:
        run.close()
    assert not tally.wrong
    assert tally.cached_tokens > 0


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=newer if n in ("qwen35", "lfm2-window") else ()) for n in KINDS]
)
def test_kind(models: Path, name: str) -> None:
    """Each model's memory is told for what it is."""
    with Llama(models / name, n_ctx=64, n_parallel=1) as llm:
        assert llm.context.memory is not None
        assert llm.context.memory.kind is KINDS[name]
        assert llm.context.memory.window == (32 if name in ("gemma3", "lfm2-window") else 0)


def test_window_that_is_gone(models: Path) -> None:
    """A prompt that shares its beginning with one whose window has moved on is not continued from a hole."""
    with Llama(
        models / "gemma3", n_ctx=512, n_parallel=1, context_params=SMALL_WINDOW, checkpoint_bytes=0, n_ubatch=64
    ) as llm:
        memory = llm.context.memory
        assert memory is not None
        long = [3 + i % 200 for i in range(400)]
        llm.generate(long, max_tokens=1)
        assert memory.holds(0, 400)
        assert memory.remove(0, 60)
        assert not memory.holds(0, 60)
        llm.clear_cache()
        llm.generate(long, max_tokens=1)
        warm = llm.generate([*long[:60], 7, 8, 9], max_tokens=4, temperature=0, ignore_eos=True)
        assert warm.usage.cached_tokens == 0
        cold = llm.generate([*long[:60], 7, 8, 9], max_tokens=4, temperature=0, ignore_eos=True, prefix_cache=False)
        assert warm.token_ids == cold.token_ids


@pytest.mark.parametrize("name", known_kinds(name for name, kind in KINDS.items() if kind is not MemoryKind.FULL))
def test_checkpoints(models: Path, name: str) -> None:
    """Where the memory cannot go back, a request goes on from a checkpoint: near the end of a prompt given again,
    where prompts were seen to part, and at the ends of a prompt's batches; without a budget it computes all."""
    settings: dict[str, Any] = {"n_ctx": 512, "n_parallel": 1, "n_ubatch": 64, "context_params": SMALL_WINDOW}
    stem = [3 + i * 7 % 240 for i in range(230)]
    asks = [stem + [10 + i] * 40 for i in range(4)]
    with Llama(models / name, **settings) as llm:
        assert llm.generate(asks[0], max_tokens=200, ignore_eos=True).usage.cached_tokens == 0
        assert llm.generate(asks[0], max_tokens=1).usage.cached_tokens >= 266
        llm.generate(asks[1], max_tokens=1)  # here it sees where they part
        assert llm.generate(asks[2], max_tokens=1).usage.cached_tokens == 230
        assert llm.generate(asks[3], max_tokens=1).usage.cached_tokens == 230
        # and where nothing has parted yet, a batch ago
        assert llm.generate([*stem[:150], 9, 8], max_tokens=1).usage.cached_tokens >= 64
    with Llama(models / name, **settings, checkpoint_bytes=0) as llm:
        llm.generate(asks[0], max_tokens=200, ignore_eos=True)
        assert llm.generate(asks[0][:150], max_tokens=1).usage.cached_tokens == 0


def test_checkpoints_within_their_budget(models: Path) -> None:
    """Old checkpoints give way; one that is larger than the budget is not kept."""
    with Llama(models / "granite-hybrid", n_ctx=512, n_parallel=1, checkpoint_bytes=30_000) as llm:
        [checkpoints] = [scheduler.prefixes.checkpoints for scheduler in llm.engine.schedulers]
        for i in range(8):
            llm.generate([3 + i] * 60, max_tokens=1)
            assert checkpoints.nbytes <= 30_000
        assert len(checkpoints) > 1
        assert llm.generate([10] * 60 + [5], max_tokens=1).usage.cached_tokens
        assert llm.generate([3] * 60 + [5], max_tokens=1).usage.cached_tokens == 0
    with Llama(models / "granite-hybrid", n_ctx=512, n_parallel=1, checkpoint_bytes=1_000) as llm:
        llm.generate([3] * 60, max_tokens=4)
        assert llm.generate([3] * 60, max_tokens=1).usage.cached_tokens == 0


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_shift_of_shared_cells(models: Path, name: str) -> None:
    """Cells that sequences share have one position: a request that shifts takes cells of its own, the others stay. One
    that is computed again after a shift is computed without what was dropped."""
    long, short = [5 + i * i % 200 for i in range(240)], {"max_tokens": 40, "overflow": "stop"}
    asked: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    exact: dict[str, Any] = {"kv_type": "f32", "flash_attn": False}
    shifted = {**asked, "max_tokens": 60, "overflow": "shift", "keep": 4}
    with Llama(models / name, n_ctx=256, n_parallel=1, prefix_cache=False, **exact) as cold:
        want = cold.generate(long, **shifted).token_ids
        beside = cold.generate([*long[:150], 7], **asked, **short).token_ids
    with Llama(models / name, n_ctx=256, n_parallel=3, kv_cells=900, **exact) as llm:
        assert [done.token_ids for done in llm.generate(long, **shifted, n=2)] == [want, want]
        stream = llm.stream([*long[:150], 7], **asked, **short)
        next(stream)
        assert llm.generate(long, **shifted).token_ids == want
        assert list(stream)[-1].completion.token_ids == beside
    with Llama(models / name, n_ctx=256, n_parallel=3, kv_cells=400, **exact) as llm:  # not room for two
        done = None
        for i, chunk in enumerate(llm.stream(long, **shifted)):
            done = chunk.completion
            if i in (15, 16, 40):
                llm.engine.schedulers[0]._unfinished = True  # as after Ctrl-C
        assert done is not None
        assert len(done.token_ids) == 60
        assert done.token_ids[:17] == want[:17]
        for done in llm.generate(long, **shifted, n=2):
            assert len(done.token_ids) == 60
            assert done.token_ids[:17] == want[:17]


@pytest.mark.parametrize("name", known_kinds(["mamba", "lfm2", "granite-hybrid", "qwen35"]))
def test_drafts_without_roll_back(models: Path, name: str) -> None:
    """Drafts on models whose state cannot be rolled back: the same text, with some drafts kept and some not."""
    prompt = [3 + i % 7 for i in range(40)] + [3 + i * 7 % 240 for i in range(20)]
    wanted: dict[str, Any] = {"max_tokens": 120, "temperature": 0, "ignore_eos": True}
    prompts = [prompt, prompt[:30]]
    with Llama(models / name, n_ctx=256, n_parallel=2, kv_type="f32") as llm:
        plain = [llm.generate(p, **wanted).token_ids for p in prompts]
    with Llama(models / name, n_ctx=256, n_parallel=2, kv_type="f32", draft="ngram", n_draft=4) as llm:
        drafted = llm.generate(prompts, **wanted)
        assert [r.token_ids for r in drafted] == plain
        assert any(0 < r.timings.accepted < r.timings.drafted for r in drafted)
        again = llm.generate(prompt + plain[0], max_tokens=1)
        assert again.usage.cached_tokens > 60


@pytest.mark.parametrize("name", known_kinds(["mamba", "lfm2-window", "granite-hybrid", "qwen35"]))
def test_draft_model_without_roll_back(models: Path, name: str) -> None:
    """A draft model for a model whose state cannot be rolled back: the same text, also beside others and again."""
    prompts = [[3 + i % 7 for i in range(40)], [3 + i * 7 % 240 for i in range(50)]]
    wanted: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    settings: dict[str, Any] = {"n_ctx": 256, "n_parallel": 2, "kv_type": "f32"}
    with Llama(models / name, **settings) as llm:
        plain = [llm.generate(p, **wanted).token_ids for p in prompts]
    with Llama(models / name, draft=models / "llama", n_draft=3, **settings) as llm:
        for _ in range(2):
            drafted = llm.generate(prompts, **wanted)
            assert [r.token_ids for r in drafted] == plain
            assert all(r.timings.drafted for r in drafted)
        assert all(r.usage.cached_tokens > 30 for r in drafted)


def test_what_cannot_draft(models: Path) -> None:
    """A model that cannot be rolled back as a drafter: a sentence."""
    with pytest.raises(UnsupportedModel, match="cannot be rolled back"):
        Llama(models / "llama", n_ctx=64, n_parallel=1, draft=models / "mamba")


def test_control_vector(models: Path) -> None:
    """What was computed with another control vector is neither continued nor loaded."""
    prompt = [3 + i * 7 % 240 for i in range(100)]
    rows = np.full((1, 32), 0.5, np.float32)
    with Llama(models / "llama", n_ctx=128, n_parallel=2) as llm:
        llm.generate(prompt, max_tokens=1)
        set_control_vector(llm.context, rows)
        assert llm.generate(prompt, max_tokens=1).usage.cached_tokens == 0
        assert llm.generate(prompt, max_tokens=1).usage.cached_tokens == 99
        set_control_vector(llm.context, rows * 2)
        changed = llm.generate(prompt, max_tokens=1, logprobs=3)
        assert changed.usage.cached_tokens == 0
        set_control_vector(llm.context, None)
        plain = llm.generate(prompt, max_tokens=1, logprobs=3)
        assert plain.logprobs != changed.logprobs


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"context_params": ContextParams(rope_freq_base=5000.0)}, "rope_freq_base"),
        ({"context_params": ContextParams(rope_freq_scale=0.5)}, "rope_freq_scale"),
        ({"model_params": ModelParams(kv_overrides={"llama.rope.freq_base": 500.0})}, "kv_overrides"),
        ({"vector": True}, "control_vector"),
        ({"kv_type": "f32"}, "type_k"),
    ],
)
def test_state_computed_otherwise(models: Path, tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    """load_state refuses what was computed with other settings, and says which one differs."""
    with Llama(models / "llama", n_ctx=128, n_parallel=2) as llm:
        llm.generate([3 + i * 7 % 240 for i in range(100)], max_tokens=1)
        llm.save_state(tmp_path / "state")
    settings = {key: value for key, value in changed.items() if key != "vector"}
    with Llama(models / "llama", n_ctx=128, n_parallel=2, **settings) as llm:
        if "vector" in changed:
            set_control_vector(llm.context, np.ones((1, 32), np.float32))
        with pytest.raises(InvalidRequest, match=named):
            llm.load_state(tmp_path / "state")
        assert llm.generate([5, 6, 7], max_tokens=1).usage.cached_tokens == 0


@pytest.mark.parametrize("name", known_kinds(KINDS))
def test_state_for_other_slots(models: Path, tmp_path: Path, name: str) -> None:
    """What one Llama saved goes on in another with more slots, fewer, or shared cells."""
    prompt = [3 + i * 7 % 240 for i in range(100)]
    more: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": 8}
    with Llama(models / name, n_ctx=256, n_parallel=3) as llm:
        first = llm.generate(prompt, max_tokens=3, temperature=0, ignore_eos=True)
        going_on = [*prompt, *first.token_ids, 5, 6, 7]
        llm.save_state(tmp_path / "state")
        cold = dict(llm.generate(going_on, prefix_cache=False, **more).logprobs[0].top)
    for settings in ({"n_parallel": 1}, {"n_parallel": 4}, {"n_parallel": 2, "kv_cells": 600}):
        with Llama(models / name, n_ctx=256, **settings) as llm:
            assert llm.load_state(tmp_path / "state") == 102
            warm = llm.generate(going_on, **more)
            assert warm.usage.cached_tokens == 102
            got = dict(warm.logprobs[0].top)
            assert max(abs(got[t] - cold[t]) for t in got.keys() & cold.keys()) < 0.06


@newer
@pytest.mark.parametrize(("name", "again"), [("llama", 64), ("deepseek2", 64), ("gemma3", 40), ("lfm2", 40)])
def test_tile_of_attention(models: Path, name: str, again: int) -> None:
    """With full attention on the CPU, some of what is kept is computed again where 64 tokens take less time than 40;
    not where a few are left, nor without flash attention."""
    kept, wanted = [3 + i * 7 % 240 for i in range(300)], {"max_tokens": 1, "logprobs": 8, "temperature": 0}
    with Llama(models / name, n_ctx=512, n_parallel=2, device="cpu") as llm:
        llm.generate(kept, max_tokens=1)
        done = llm.generate([*kept, *range(10, 50)], **wanted)
        assert done.usage.prompt_tokens - done.usage.cached_tokens == again
        cold = llm.generate([*kept, *range(10, 50)], prefix_cache=False, **wanted)
        got, right = dict(done.logprobs[0].top), dict(cold.logprobs[0].top)
        assert max(abs(got[t] - right[t]) for t in got.keys() & right.keys()) < 0.12
        assert llm.generate([*kept, *range(10, 50), 7, 8], **wanted).usage.cached_tokens == 340
    if again == 64:
        with Llama(models / name, n_ctx=512, n_parallel=2, device="cpu", flash_attn=False) as llm:
            llm.generate(kept, max_tokens=1)
            assert llm.generate([*kept, *range(10, 50)], **wanted).usage.cached_tokens == 300


@pytest.mark.parametrize("name", known_kinds(KINDS))
def test_state_in_memory(models: Path, name: str) -> None:
    """A session kept in memory goes on, also from before its end where the memory needs a checkpoint for that."""
    prompt = [3 + i * 7 % 240 for i in range(200)]
    with Llama(models / name, n_ctx=512, n_parallel=2, n_ubatch=64, context_params=SMALL_WINDOW) as llm:
        llm.generate(prompt, max_tokens=200, ignore_eos=True)
        state = llm.save_state()
        assert state.n_tokens == 399
        assert state.nbytes > 0
        llm.clear_cache()
        assert llm.load_state(state) == 399
        assert llm.generate(prompt, max_tokens=1).usage.cached_tokens >= 196
    with Llama(models / name, n_ctx=512, n_parallel=3, n_ubatch=64, context_params=SMALL_WINDOW) as llm:
        assert llm.load_state(state) == 399
        warm = llm.generate(prompt, max_tokens=5, temperature=0, ignore_eos=True)
        assert warm.usage.cached_tokens >= 196
        cold = llm.generate(prompt, max_tokens=5, temperature=0, ignore_eos=True, prefix_cache=False)
        assert warm.token_ids[:2] == cold.token_ids[:2]


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_state_without_room(models: Path, name: str) -> None:
    """Sequences that shared cells need cells of their own when they come back: what finds no room is left out."""
    stem = [3 + i * 7 % 240 for i in range(200)]
    wanted: dict[str, Any] = {"max_tokens": 3, "temperature": 0, "ignore_eos": True}
    with Llama(models / name, n_ctx=256, n_parallel=3, kv_cells=512) as llm:
        llm.generate(stem, max_tokens=1)
        llm.generate([[*stem, 10 + i] for i in range(3)], **wanted)
        state = llm.save_state()
        assert state.n_tokens > 600
        cold = llm.generate([*stem, 11], **wanted, prefix_cache=False).token_ids
        llm.clear_cache()
        assert llm.load_state(state) == 406  # two of them
        for i in (0, 1, 2, 1):
            done = llm.generate([*stem, 10 + i], **wanted)
        assert done.token_ids == cold


def test_state_beside_adapters(models: Path, tmp_path: Path) -> None:
    """What was computed without adapters is saved as such, though the last request had one; the rest is not saved."""
    path, prompt = models / "granite-hybrid", [3 + i * 7 % 240 for i in range(100)]
    file = tiny_adapter(TINY["granite-hybrid"](), tmp_path / "adapter")
    with Llama(path, n_ctx=256, n_parallel=2) as llm:
        llm.generate(prompt, max_tokens=1)
        adapter = lora.load(llm, file)
        llm.generate(prompt, max_tokens=1, lora=adapter)
        state = llm.save_state()
        assert state.n_tokens == 100
        llm.clear_cache()
        llm.generate(prompt, max_tokens=1, lora=adapter)
        assert llm.load_state(state) == 100
        assert llm.generate([*prompt, 5], max_tokens=1, lora=adapter).usage.cached_tokens == 100
        assert llm.generate([*prompt, 5], max_tokens=1).usage.cached_tokens == 100
    with Llama(path, n_ctx=256, n_parallel=1) as llm:
        assert llm.load_state(state) == 100


@newer
def test_window_and_state_do_not_shift(models: Path) -> None:
    """libllama aborts where it shifts a model whose attention all slides beside a recurrent state: refused before."""
    with Llama(models / "lfm2-window", n_ctx=128, n_parallel=1) as llm:
        with pytest.raises(UnsupportedModel, match="shift"):
            llm.generate([5, 6, 7], max_tokens=200, overflow="shift")
        assert llm.generate([5, 6, 7], max_tokens=1).token_ids


@pytest.mark.parametrize("name", ["llama", "granite-hybrid"])
@pytest.mark.parametrize("settings", [{"kv_cells": 600}, {}], ids=["shared cells", "own cells"])
def test_logits_that_are_no_numbers(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """A request whose logits are NaN fails alone: those beside it and after it, also in its cells, have their answers.

    Without flash attention a masked cell counts as 0 × NaN.
    """
    file = lively(TINY[name]())
    ne, kind, raw = file.tensors["token_embd.weight"]
    rows = np.frombuffer(raw, np.float32).reshape(ne[1], ne[0]).copy()
    rows[7] = np.nan
    file.tensors["token_embd.weight"] = ne, kind, rows.tobytes()
    file.write(tmp_path / "model")
    good = [10 + i * 7 % 200 for i in range(50)]
    bad = [*good[:20], 7, *good[20:40]]
    wanted: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    with Llama(tmp_path / "model", n_ctx=256, n_parallel=3, flash_attn=False, **settings) as llm:
        cold = [llm.generate(prompt, **wanted).token_ids for prompt in (good, good[:5])]
        llm.clear_cache()
        results = llm.generate([bad, good, bad], return_exceptions=True, **wanted)
        assert isinstance(results[0], DecodeError)
        assert isinstance(results[2], DecodeError)
        assert results[1].token_ids == cold[0]
        for _ in range(3):
            assert llm.generate(good[:5], **wanted, prefix_cache=False).token_ids == cold[1]


def test_model_from_outside_keeps_its_settings(models: Path) -> None:
    """Two Llamas of one Model have their own prefixes."""
    with Model.load(models / "llama") as model, Llama(model, n_ctx=128) as one, Llama(model, n_ctx=128) as two:
        prompt = [3 + i * 7 % 240 for i in range(100)]
        one.generate(prompt, max_tokens=1)
        assert two.generate(prompt, max_tokens=1).usage.cached_tokens == 0
