"""Generations of llama.cpp under one package: the same tokens, and clear words where the older one lacks something.

A process loads one bundle, so each runs in a child.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi import bundles
from llcuda_ffi.bundles import InstalledBundle

from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama

PROMPTS = ["Once upon a time", "The capital of France is", "def fib(n):"]
GENERATE = """
import json, sys
from llcuda_ffi import Llama
with Llama(sys.argv[1], n_ctx=256, n_parallel=3, n_threads="auto") as llm:
    done = llm.generate(json.loads(sys.argv[2]), max_tokens=24, temperature=0, ignore_eos=True)
    print(json.dumps([llm.model.library.profile.name, [r.token_ids for r in done]]))
"""
FORK = """
import os, sys
from llcuda_ffi import Llama
from llcuda_ffi.errors import ConcurrentUseError
with Llama(sys.argv[1], n_ctx=64, n_threads=2) as llm:
    llm.generate("a", max_tokens=2)
pid = os.fork()
if not pid:
    try:
        Llama(sys.argv[1], n_ctx=64, n_threads=2)
    except ConcurrentUseError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
LACKS = """
import sys
from llcuda_ffi import Context, Model, SamplerChain
from llcuda_ffi.core.state import restore_state, save_state
from llcuda_ffi.enums import SplitMode
from llcuda_ffi.errors import UnsupportedByBundle
model = Model.load(sys.argv[1])
uses = {
    "adaptive_p": lambda: SamplerChain(model).adaptive_p(0.3),
    "ftype": lambda: model.ftype,
    "n_rs_seq": lambda: Context(model, n_ctx=64, n_rs_seq=1),
    "multi-token": lambda: Model.load(sys.argv[1], load_mtp=True),
    "TENSOR": lambda: Model.load(sys.argv[1], split_mode=SplitMode.TENSOR),
}
for word, use in uses.items():
    try:
        use()
    except UnsupportedByBundle as error:
        assert word in str(error) and "v0.5.0" in str(error), (word, str(error))
    else:
        sys.exit(f"{word} raised nothing")
# its whole state of several sequences gives wrong logits unless they share their cells
settings = {"n_ctx": 128, "n_seq_max": 2}
with Context(model, **settings) as several, Context(model, **settings, kv_unified=True) as shared:
    restore_state(shared, save_state(shared))
    try:
        restore_state(several, save_state(several))
    except UnsupportedByBundle as error:
        assert "kv_unified" in str(error), error
    else:
        sys.exit("the state of several sequences was restored")
# what is left works on
with Context(model, n_ctx=64) as context:
    print(model.library.profile.name, context.n_ctx, len(model.vocab.tokenize("one two")))
"""


def test_same_tokens_in_float(tmp_path: Path) -> None:
    """Without quantized weights every generation of llama.cpp gives the same greedy tokens."""
    make_tiny_llama(tmp_path / "tiny.gguf")
    answers = {}
    for name in ("v0.5.0-cpu", "b7698-cpu", "v0.6.0-cpu", "b11669-cpu"):
        bundles.ensure(name, progress=False)
        out = run_child(GENERATE, tmp_path / "tiny.gguf", json.dumps(PROMPTS), LLCUDA_FFI_BUNDLE=name, timeout=120)
        profile, answers[name] = json.loads(out)
        assert name == f"{profile}-cpu"
    assert all(answer == answers["v0.5.0-cpu"] for answer in answers.values())
    assert [len(tokens) for tokens in answers["v0.5.0-cpu"]] == [24] * 3


def test_forked_child_of_an_openmp_build(tmp_path: Path) -> None:
    """Its threads do not survive a fork: a child is refused, where it would hang at its first computation."""
    make_tiny_llama(tmp_path / "tiny.gguf")
    bundles.ensure("v0.6.0-cpu", progress=False)
    out = run_child(FORK, tmp_path / "tiny.gguf", LLCUDA_FFI_BUNDLE="v0.6.0-cpu", timeout=120)
    assert out.startswith("ConcurrentUseError: bundle v0.6.0-cpu computes with OpenMP")
    assert "'spawn'" in out


def test_same_tokens(bundle: InstalledBundle, bundle_b7698: InstalledBundle, smollm2: Path) -> None:
    """A greedy generation of 3 prompts × 24 tokens is the same with both bundles."""
    answers: dict[str, Any] = {}
    for installed in (bundle, bundle_b7698):
        out = run_child(GENERATE, smollm2, json.dumps(PROMPTS), LLCUDA_FFI_BUNDLE=str(installed.name), timeout=120)
        profile, tokens = json.loads(out)
        assert profile == installed.profile
        answers[profile] = tokens
    if len(answers) == 1:
        pytest.skip("the environment asks for the older bundle itself")
    assert [len(t) for t in answers["b7698"]] == [24] * 3
    assert answers["b7698"] == answers[bundle.profile]


def test_what_the_older_lacks(bundle_b7698: InstalledBundle, smollm2: Path) -> None:
    """What b7698 has not is UnsupportedByBundle, which says what is missing and who has it; the rest works."""
    out = run_child(LACKS, smollm2, LLCUDA_FFI_BUNDLE=bundle_b7698.name)
    assert out.split()[0] == "b7698"
