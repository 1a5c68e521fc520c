"""Multi-token prediction: layers of the model itself draft; the text is that without drafts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Llama, lora
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.context_settings import MTP_ARCHITECTURES
from llcuda_ffi.core.model import Model
from llcuda_ffi.errors import InvalidRequest, ModelError, UnsupportedModel

from ..support.generation import newer
from ..support.random_reuse import tiny_adapter
from ..support.tiny_architectures import KV, TINY, lively
from ..support.tiny_model import TinyFile
from ..support.tiny_mtp import (
    CYCLE,
    agreeing,
    tiny_bailingmoe3,
    tiny_cohere2moe,
    tiny_deepseek2_mtp,
    tiny_deepseek32_mtp,
    tiny_glm4moe,
    tiny_hy_v3,
    tiny_mimo2,
    tiny_nemotron_h_moe,
    tiny_qwen3next_mtp,
    tiny_qwen35_mtp,
    tiny_step35,
)

pytestmark = newer

KINDS: dict[str, Callable[[], TinyFile]] = {"glm4moe": tiny_glm4moe, "qwen35": tiny_qwen35_mtp}
MORE: dict[str, Callable[[], TinyFile]] = {
    **KINDS,
    "bailingmoe3": tiny_bailingmoe3,
    "cohere2moe": tiny_cohere2moe,
    "deepseek2": tiny_deepseek2_mtp,
    "deepseek32": tiny_deepseek32_mtp,
    "glm-dsa": lambda: tiny_deepseek32_mtp("glm-dsa"),
    "hy_v3": tiny_hy_v3,
    "mimo2": tiny_mimo2,
    "nemotron_h_moe": tiny_nemotron_h_moe,
    "qwen35moe": lambda: tiny_qwen3next_mtp("qwen35moe"),
    "qwen3next": tiny_qwen3next_mtp,
    "step35": tiny_step35,
}
PROMPTS = [list(CYCLE[3:15]), list(CYCLE[:7]), list(CYCLE[5:]) * 3, [3 + i * 7 % 240 for i in range(90)]]
ANSWER: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
SETTINGS: dict[str, Any] = {"n_ctx": 256, "n_parallel": 2, "kv_type": "f32", "n_batch": 64, "n_threads": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models whose layers draft; and such whose drafts are right, always or mostly."""
    folder = tmp_path_factory.mktemp("mtp")
    for name, make in MORE.items():
        lively(make()).write(folder / name)
        agreeing(make(), CYCLE).write(folder / f"{name}-right")
        if name in KINDS:
            agreeing(make(), CYCLE, CYCLE[::5]).write(folder / f"{name}-mostly")
    return folder


def texts(llm: Llama, prompts: list[list[int]], **settings: Any) -> list[Any]:
    return [r.token_ids for r in llm.generate(prompts, **ANSWER, **settings)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("settings", [{}, {"kv_cells": 600, "n_parallel": 4}], ids=str)
def test_same_text(models: Path, name: str, settings: dict[str, Any]) -> None:
    """Greedy and sampled, alone and beside others, a second turn, several completions: the tokens without drafts."""
    # random experts flip by how a batch is rounded, which in shared cells hangs on what is beside, drafts or not
    files = [name] if name == "qwen35" or "kv_cells" not in settings else []
    settings = {**SETTINGS, **settings}
    for file in (*files, f"{name}-mostly"):
        found = []
        for draft in (None, "mtp"):
            with Llama(models / file, draft=draft, **settings) as llm:
                one = texts(llm, PROMPTS, temperature=0)
                two = texts(llm, [p + t for p, t in zip(PROMPTS, one, strict=True)], temperature=0)
                sampled = texts(llm, PROMPTS, temperature=0.8, seed=5)
                several = [r.token_ids for r in llm.generate(PROMPTS[0], n=3, seed=7, temperature=1.5, **ANSWER)]
                limited = [llm.generate(PROMPTS[1], max_tokens=n, temperature=0).token_ids for n in (1, 2)]
                found.append((one, two, sampled, several, limited))
                assert (llm.metrics().drafted > 100) == (draft is not None)
        assert found[0] == found[1]


@pytest.mark.parametrize("name", sorted(MORE.keys() - KINDS.keys()))
def test_same_text_alone(models: Path, name: str) -> None:
    """Each architecture, with random weights: the tokens without drafts, of which hardly any are taken."""
    found = []
    for draft in (None, "mtp"):
        with Llama(models / name, draft=draft, **SETTINGS) as llm:
            found.append([llm.generate(p, temperature=0, max_tokens=24, ignore_eos=True) for p in PROMPTS[1::2]])
    assert [answer.token_ids for answer in found[0]] == [answer.token_ids for answer in found[1]]
    assert all(answer.timings.drafted > 10 for answer in found[1])


def test_architectures() -> None:
    """Each that drafts is tried here."""
    assert set(MORE) == MTP_ARCHITECTURES


@pytest.mark.parametrize("name", MORE)
def test_right_drafts(models: Path, name: str) -> None:
    """Layers that agree with the model are believed: each token gets the hidden state that belongs to it, also beside
    others, of prompts in parts, and after a rejected draft; and there are fewer batches than tokens."""
    prompts = [list(CYCLE) * 4, list(CYCLE[4:]) * 3, list(CYCLE[:9])]
    for kind, share in {"right": 1.0, "mostly": 0.3}.items() if name in KINDS else [("right", 1.0)]:
        file = f"{name}-{kind}"
        with Llama(models / file, draft="mtp", **SETTINGS) as llm:
            before = llm.metrics().batches
            answers = llm.generate([prompts[0]], temperature=0, **ANSWER)
            steps = llm.metrics().batches - before
            answers += llm.generate(prompts, temperature=0, **ANSWER)
            for answer in answers:
                assert answer.timings.accepted >= share * answer.timings.drafted > 0
            # 92 tokens of a prompt in parts of 64, then 4 tokens with each batch
            assert steps <= 13 if share == 1 else steps < 40
            metrics = llm.metrics()
            assert metrics.accepted == sum(a.timings.accepted for a in answers)


def test_what_follows_a_slot(models: Path) -> None:
    """What the layers hold is found again: of the conversation that goes on, and of another sequence."""
    with Llama(models / "glm4moe-right", draft="mtp", **SETTINGS) as llm:
        prompt = list(CYCLE) * 3
        answer = llm.generate(prompt, temperature=0, **ANSWER)
        for follow in (prompt + answer.token_ids, prompt + answer.token_ids[:20] + [7, 8] + list(CYCLE[:4]), prompt):
            again = llm.generate(follow, temperature=0, **ANSWER)
            assert again.timings.accepted == again.timings.drafted > 20


@pytest.mark.parametrize("name", KINDS)
def test_adapters(models: Path, name: str, tmp_path: Path) -> None:
    """A request with an adapter has the tokens that it has without drafts, and so has the next one without."""
    adapter = tiny_adapter(lively(KINDS[name]()), tmp_path / "adapter")
    found = []
    for draft in (None, "mtp"):
        with Llama(models / name, draft=draft, **SETTINGS) as llm:
            given = {lora.load(llm, adapter): 3.0}
            found.append([texts(llm, PROMPTS[:2], temperature=0, lora=kind) for kind in (None, given, None)])
            assert (llm.metrics().drafted > 50) == (draft is not None)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


@pytest.mark.parametrize("name", KINDS)
def test_beside(models: Path, tmp_path: Path, name: str) -> None:
    """Constraints, stops, cancelled streams, shifts, saved states, and the cache forgotten: the same answers."""
    found = []
    for draft in (None, "mtp"):
        with Llama(models / f"{name}-right", draft=draft, **SETTINGS) as llm:
            got: list[Any] = [llm.generate(PROMPTS[0], choices=["the", "dog"], max_tokens=5, temperature=0).text]
            stream = llm.stream(PROMPTS[2], temperature=0, **ANSWER)
            next(iter(stream))
            stream.close()
            got.append(llm.generate(PROMPTS[2], prompt_logprobs=1, max_tokens=3, temperature=0).token_ids)
            llm.save_state(tmp_path / "state")
            llm.clear_cache()
            llm.load_state(tmp_path / "state")
            got.append(texts(llm, PROMPTS, temperature=0))
            if name == "glm4moe":
                got.append(llm.generate(PROMPTS[0], overflow="shift", max_tokens=300, ignore_eos=True).token_ids)
                got.append(texts(llm, PROMPTS, temperature=0))
            found.append(got)
    assert found[0] == found[1]


def test_isolated(models: Path) -> None:
    """In a process of its own."""
    with Llama(models / "qwen35-right", draft="mtp", isolate=True, **SETTINGS) as llm:
        answer = llm.generate(PROMPTS[0], temperature=0, **ANSWER)
        assert answer.timings.accepted == answer.timings.drafted > 20


def test_what_has_no_mtp(models: Path, tmp_path: Path) -> None:
    """A sentence each for what cannot draft so."""
    llama, several, lost, other, apart = (tmp_path / name for name in ("llama", "several", "lost", "other", "apart"))
    TINY["llama"]().write(llama)
    tiny_qwen35_mtp(2).write(several)
    file = tiny_glm4moe()
    file.tensors = {name: tensor for name, tensor in file.tensors.items() if ".nextn." not in name}
    file.write(lost)
    file = TINY["qwen2"]()
    file.metadata["qwen2.nextn_predict_layers"] = 1
    file.tensors["blk.1.nextn.eh_proj.weight"] = file.tensors["blk.1.attn_q.weight"]
    file.write(other)
    file = tiny_mimo2()
    for name in [name for name in file.tensors if "attn_qkv" in name]:
        whole = file.tensors.pop(name)[0]
        for part, rows in (("q", whole[0]), ("k", KV), ("v", KV)):
            file.add(name.replace("qkv", part), (whole[0], rows), np.random.default_rng(1))
    file.write(apart)
    for path, message in (
        (llama, "no layers of multi-token prediction"),
        (several, "has 2 layers"),
        (lost, "no layers of multi-token prediction"),
        (other, "its architecture|could not load"),
        (apart, "none that libllama computes"),
    ):
        with pytest.raises((UnsupportedModel, ModelError), match=message):
            Llama(path, draft="mtp", **SETTINGS)
    with Model.load(models / "glm4moe") as model:
        with pytest.raises(InvalidRequest, match="load_mtp=True"):
            Llama(model, draft="mtp", **SETTINGS)
        assert model.n_layer_mtp == 1
    with Model.load(models / "glm4moe", load_mtp=True) as model:
        with Llama(model, draft="mtp", **SETTINGS) as llm:
            assert llm.generate(PROMPTS[0], max_tokens=4).timings.drafted
        with pytest.raises(InvalidRequest, match="draft='mtp'"):
            Llama(model, context_params=Context(model, mtp=True).params)


def test_hidden_states(models: Path) -> None:
    """Those of a batch of several sequences of outputs only are each one's own."""
    from llcuda_ffi.core.batch import Batch

    with Model.load(models / "qwen35", load_mtp=True) as model:
        rows = []
        for lengths in ([9], [5], [9, 5]):
            context = Context(model, n_ctx=64, n_batch=32, n_seq_max=2, n_threads=1)
            context.keep_hidden()
            batch = Batch(32)
            for i, n in enumerate(lengths):
                batch.extend(PROMPTS[3][:n] if n == 9 else PROMPTS[3][20 : 20 + n], 0, i, output="all")
            context.decode(batch)
            rows.append(context.hidden(batch.n_tokens).copy())
            context.close()
        np.testing.assert_allclose(rows[2], np.concatenate(rows[:2]), atol=1e-4)
