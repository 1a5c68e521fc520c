"""Settings of a request and of a Llama: what each does, and how a bad one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import ContextParams, Embedder, Llama, ModelParams, Reranker, SamplingParams
from llcuda_ffi.errors import InvalidRequest, UnknownSetting

from ..support.child_process import run_child

STORY = "Once upon a time"


@pytest.mark.bundle("v0.5.0")
def test_samplers_change_the_text(llm: Llama) -> None:
    """Each setting reaches libllama: bans, penalties, every sampler gives text; greedy ignores the seed."""
    first = llm.generate(STORY, max_tokens=1, temperature=0).token_ids[0]
    banned = llm.generate(STORY, max_tokens=1, temperature=0, logit_bias={first: float("-inf")})
    assert banned.token_ids[0] != first
    forced = llm.generate(STORY, max_tokens=2, temperature=0, logit_bias={100: 1000.0})
    assert forced.token_ids == [100, 100]
    loop = llm.generate("a a a a a a a a", max_tokens=8, temperature=0)
    free = llm.generate("a a a a a a a a", max_tokens=8, temperature=0, repeat_penalty=1.8, presence_penalty=1.0)
    assert loop.text != free.text
    for settings in (
        {"mirostat": 1},
        {"mirostat": 2},
        {"typical_p": 0.5},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 0.5, "top_p": 1.0},
        {"dynatemp_range": 0.5},
        {"dry_multiplier": 0.8},
        {"adaptive_p_target": 0.3},
        {"top_k": 1},
        {"frequency_penalty": 0.5, "penalty_last_n": -1},
    ):
        a = llm.generate(STORY, SamplingParams(max_tokens=6, seed=3, **settings))
        b = llm.generate(STORY, SamplingParams(max_tokens=6, seed=3, **settings))
        assert a.text == b.text, settings
    assert (
        llm.generate(STORY, max_tokens=6, top_k=1, seed=1).text == llm.generate(STORY, max_tokens=6, temperature=0).text
    )


def test_grammar(llm: Llama) -> None:
    """A GBNF grammar holds for every sampled token, and ends the text."""
    for seed in range(4):
        done = llm.generate("Is water wet? Answer:", grammar='root ::= " yes" | " no"', temperature=1.0, seed=seed)
        assert done.text in (" yes", " no")
        assert done.finish_reason == "eog"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_tokens": 200}, "min_tokens"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"tempreature": 1.0}, "temperature"),
        ({"n": 0}, "n must"),
        ({"logit_bias": {10**6: 1.0}}, "logit_bias"),
        ({"logit_bias": {5: float("-inf")}, "allowed_token_ids": [5]}, "no token"),
        ({"overflow": "wrap"}, "overflow"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"grammar": "root ::= missing"}, "grammar"),
        ({"grammar": "root ::= " + "(" * 5000}, "grammar"),
        ({"mirostat": 3}, "mirostat"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"max_tokens": 10**5000}, "max_tokens"),  # an int that Python does not write out
        ({"logit_bias": [[1, 2.0]]}, "logit_bias"),
        ({"stop_token_ids": np.array(3)}, "stop_token_ids"),
        ({"top_k": np.array([1, 2])}, "top_k"),
        ({"overflow": np.array(["a", "b"])}, "overflow"),
    ],
)
def test_bad_settings(llm: Llama, settings: dict[str, object], words: str) -> None:
    """Each bad setting is one InvalidRequest that names it; the Llama stays usable."""
    with pytest.raises(InvalidRequest, match=words):
        llm.generate(STORY, **settings)
    assert llm.generate(STORY, max_tokens=1).text


@pytest.mark.parametrize("prompt", ["", b"", [], 5, None, [1, 2, 10**9], [-1], ["a", ""], [["x"]], {"a": 1}])
def test_bad_prompts(llm: Llama, prompt: object) -> None:
    """Each bad prompt is one InvalidRequest."""
    if prompt == []:
        assert llm.generate(prompt) == []  # no prompts, no results
        return
    with pytest.raises(InvalidRequest):
        llm.generate(prompt)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_ctx": 0},
        {"n_parallel": 0},
        {"n_parallel": 1000},
        {"n_threads": 0},
        {"kv_type": "q3_k"},
        {"kv_type": "nonsense"},
        {"flash_attn": "maybe"},
        {"device": "tpu"},
        {"n_ctx": 2**31 - 1, "n_parallel": 8},
        {"n_ctx": "512"},
        {"n_batch": "512"},
        {"n_ubatch": 0.5},
        {"kv_cells": [1]},
        {"kv_type": ("f16",)},
        {"bundle": 5},
        {"progress": 5},
        {"model_params": {"main_gpu": 0}},
        {"context_params": SamplingParams()},
    ],
)
def test_bad_llama_settings(smollm2: Path, settings: dict[str, object]) -> None:
    """A bad setting of Llama is one InvalidRequest; nothing stays loaded."""
    with pytest.raises(InvalidRequest):
        Llama(smollm2, **settings)  # type: ignore[arg-type]


def test_a_complete_structure_ends(smollm2: Path) -> None:
    """With ignore_eos it ends all the same; with its end banned no token is left: no abort."""
    code = """
        import sys
        from llcuda_ffi import Llama
        from llcuda_ffi.errors import InvalidRequest
        with Llama(sys.argv[1], n_ctx=64) as llm:
            ends = dict.fromkeys(llm.vocab.eog_tokens, float("-inf"))
            for structure in ({"grammar": 'root ::= "ab"'}, {"choices": ["ab"]}):
                assert llm.generate("x", ignore_eos=True, max_tokens=30, **structure).text == "ab"
                for ban in ({"min_tokens": 20}, {"logit_bias": ends}):
                    for temperature in (0, 0.8):
                        try:
                            done = llm.generate("x", temperature=temperature, max_tokens=30, **ban, **structure)
                            assert done.text == "ab"
                        except InvalidRequest:
                            pass
    """
    run_child(code, smollm2)


def test_lists_of_any_kind() -> None:
    """Where a list is wanted, an array, a set and a generator do; a text, a number and a mapping do not."""
    given = SamplingParams(stop={"a"}, stop_token_ids=np.array([1, 2]), allowed_token_ids=iter([3]))  # type: ignore[arg-type]
    assert (given.stop, given.stop_token_ids, given.allowed_token_ids) == (("a",), (1, 2), (3,))
    assert ModelParams(tensor_split=np.array([1, 3])).tensor_split == (1, 3)
    for name in ("devices", "tensor_split", "kv_overrides", "tensor_buft_overrides"):
        for wrong in ("CUDA0", 5, np.array(5)):
            with pytest.raises(InvalidRequest, match=name):
                ModelParams(**{name: wrong})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SamplingParams(max_token=3), "did you mean max_tokens"),  # type: ignore[call-arg]
        (lambda: SamplingParams(max_new_tokens=3), "here it is max_tokens"),  # type: ignore[call-arg]
        (lambda: SamplingParams().replace(repetition_penalty=1.1), "here it is repeat_penalty"),
        (lambda: Llama("smollm2-135m", nctx=3), "did you mean n_ctx"),  # type: ignore[call-arg]
        (lambda: Llama("smollm2-135m", verbose=False), "logging"),  # type: ignore[call-arg]
        (lambda: Embedder("all-minilm-l6-v2", max_seq_length=3), "max_tokens"),  # type: ignore[call-arg]
        (lambda: ContextParams(n_thread=3), "did you mean n_threads"),  # type: ignore[call-arg]
        (lambda: Reranker("all-minilm-l6-v2", max_token=3), "did you mean max_tokens"),  # type: ignore[call-arg]
        (lambda: Llama.from_pretrained("smollm2-135m", n_gpu_layer=3), "did you mean n_gpu_layers"),
    ],
)
def test_unknown_settings(make: Callable[[], object], words: str) -> None:
    """A setting that does not exist names the nearest one, or what another engine's name is called here."""
    with pytest.raises(UnknownSetting, match=words) as caught:
        make()
    assert isinstance(caught.value, (InvalidRequest, TypeError))
