"""Llama: text from the real model, alone and many at once."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Completion, Llama, SamplingParams
from llcuda_ffi.errors import (
    ClosedError,
    ContextOverflow,
    InvalidModelFile,
    InvalidRequest,
    LlcudaError,
    ModelNotFound,
)

STORY = "Once upon a time"
PROMPTS = [STORY, "The capital of France is", "def fib(n):", "One, two, three, four,"]


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, n_ctx=512, n_parallel=4) as llm:
        yield llm


def test_completion(llm: Llama) -> None:
    """A completion says what was generated, why it ended, what it cost."""
    done = llm.generate(STORY, max_tokens=16, temperature=0)
    assert isinstance(done, Completion)
    assert done.text
    assert done.text == llm.vocab.detokenize(done.token_ids)
    assert done.finish_reason == "length"
    assert done.usage.prompt_tokens == len(llm.vocab.tokenize(STORY))
    assert done.usage.completion_tokens == len(done.token_ids) == 16
    assert done.timings.ttft_s > 0
    assert done.timings.tokens_per_s > 0
    assert done.seed is None
    assert done.logprobs is None


def test_stream_gives_the_same_text(llm: Llama) -> None:
    """The chunks join to the text, the token ids to the ids; the last chunk has the completion."""
    whole = llm.generate(STORY, max_tokens=24, temperature=0)
    chunks = list(llm.stream(STORY, max_tokens=24, temperature=0))
    assert "".join(c.text for c in chunks) == whole.text
    assert [t for c in chunks for t in c.token_ids] == whole.token_ids
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.text == whole.text


def test_seed(llm: Llama) -> None:
    """The same seed gives the same text, another one another; the seed drawn is told and can be given again."""
    params = SamplingParams(max_tokens=24, temperature=1.0)
    one = llm.generate(STORY, params, seed=11)
    assert one.text == llm.generate(STORY, params, seed=11).text
    assert one.text != llm.generate(STORY, params, seed=12).text
    drawn = llm.generate(STORY, params)
    assert drawn.seed is not None
    assert drawn.text == llm.generate(STORY, params, seed=drawn.seed).text


def test_batch_in_order(llm: Llama) -> None:
    """More prompts than slots: every result stands at its prompt's place and is what the prompt gives alone."""
    alone = {p: llm.generate(p, max_tokens=8, temperature=0).text for p in PROMPTS}
    many = PROMPTS * 3
    results = llm.generate(many, max_tokens=8, temperature=0)
    assert [r.text for r in results] == [alone[p] for p in many]
    each = llm.generate(PROMPTS[:2], [SamplingParams(max_tokens=3), SamplingParams(max_tokens=5)])
    assert [len(r.token_ids) for r in each] == [3, 5]


def test_n_shares_the_prompt(llm: Llama) -> None:
    """n completions of one prompt differ, and their prompt is computed once."""
    prompt = "A very short list of things that one may find in a kitchen drawer, in no order at all:" * 6
    results = llm.generate(prompt, n=3, max_tokens=12, temperature=1.0, seed=5)
    assert len({r.text for r in results}) > 1
    assert [r.usage.cached_tokens > 50 for r in results] == [False, True, True]


def test_stop_strings(llm: Llama) -> None:
    """A stop string ends the text before it, also where it begins in the middle of one token and ends in another."""
    whole = llm.generate(STORY, max_tokens=24, temperature=0).text
    stop = whole[9:17]
    cut = llm.generate(STORY, max_tokens=24, temperature=0, stop=[stop])
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.index(stop)]
    streamed = "".join(c.text for c in llm.stream(STORY, max_tokens=24, temperature=0, stop=stop))
    assert streamed == cut.text


def test_unicode_streams_whole(llm: Llama) -> None:
    """Characters that are several tokens arrive whole."""
    prompt = "Repeat: 🙂🦙 é 漢字 🙂🦙 é 漢字 🙂🦙 é 漢字 🙂🦙 é"
    chunks = [c.text for c in llm.stream(prompt, max_tokens=24, temperature=0, ignore_eos=True)]
    assert "漢字" in "".join(chunks)
    assert not any("\ufffd" in c for c in chunks[:-1])


def test_end_token(llm: Llama) -> None:
    """A chat answer ends with "eog", and the end token writes nothing."""
    prompt = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
    done = llm.generate(prompt, max_tokens=200, temperature=0)
    assert done.finish_reason == "eog"
    assert "<|im_end|>" not in done.text
    more = llm.generate(prompt, max_tokens=60, temperature=0, ignore_eos=True)
    assert len(more.token_ids) == 60


def test_logprobs(llm: Llama) -> None:
    """Log probabilities are those of the softmax of the row that the token was chosen from."""
    done = llm.generate(STORY, max_tokens=4, temperature=0, logprobs=5)
    assert done.logprobs is not None
    assert [entry.token for entry in done.logprobs] == done.token_ids
    for entry in done.logprobs:
        assert entry.top[0] == (entry.token, entry.logprob)  # greedy
        assert len(entry.top) == 5
        assert all(a[1] >= b[1] for a, b in itertools.pairwise(entry.top))
        assert sum(np.exp(p) for _, p in entry.top) <= 1.0001
    streamed = [e for c in llm.stream(STORY, max_tokens=4, temperature=0, logprobs=5) for e in c.logprobs or []]
    assert [e.token for e in streamed] == done.token_ids
    assert np.allclose([e.logprob for e in streamed], [e.logprob for e in done.logprobs], atol=0.05)


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
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"tempreature": 1.0}, "temperature"),
        ({"n": 0}, "n must"),
        ({"logit_bias": {10**6: 1.0}}, "logit_bias"),
        ({"overflow": "wrap"}, "overflow"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"grammar": "root ::= missing"}, "grammar"),
        ({"grammar": "root ::= " + "(" * 5000}, "grammar"),
        ({"mirostat": 3}, "mirostat"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
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


def test_context_overflow(llm: Llama) -> None:
    """A prompt longer than the context is refused; so is a sum that exceeds it, unless the policy allows it."""
    with pytest.raises(ContextOverflow, match="512"):
        llm.generate("word " * 600)
    tokens = [100] * 500
    with pytest.raises(ContextOverflow, match="max_tokens"):
        llm.generate(tokens, max_tokens=50)
    stopped = llm.generate(tokens, max_tokens=50, overflow="stop", ignore_eos=True)
    assert stopped.finish_reason == "length"
    assert len(stopped.token_ids) == 12
    unlimited = llm.generate(tokens, max_tokens=None, ignore_eos=True)
    assert len(unlimited.token_ids) == 12
    shifted = llm.generate(tokens, max_tokens=300, overflow="shift", keep=4, ignore_eos=True)
    assert len(shifted.token_ids) == 300


def test_prefix_cache(llm: Llama) -> None:
    """A prompt that continues an earlier one computes only the new tokens; off, it computes all."""
    base = "The following is a long system prompt that every request of this test begins with. " * 8
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
    prompt = "A rather long beginning that is worth keeping from one process to the next one. " * 6
    file = tmp_path / "state"
    with Llama(smollm2, n_ctx=512, n_parallel=2) as llm:
        want = llm.generate(prompt, max_tokens=6, temperature=0)
        assert llm.save_state(file) >= want.usage.prompt_tokens
    with Llama(smollm2, n_ctx=512, n_parallel=2) as llm:
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


def test_host_tier(smollm2: Path) -> None:
    """With a host budget, a prefix pushed out of the KV cache by another request comes back; within the budget."""
    prompts = [f"Story number {i} is about something that nobody had expected at all. " * 12 for i in range(3)]
    with Llama(smollm2, n_ctx=512, n_parallel=1, host_cache_bytes=64 << 20) as llm:
        first = [llm.generate(p, max_tokens=4, temperature=0) for p in prompts]
        again = [llm.generate(p, max_tokens=4, temperature=0) for p in prompts]
        assert [r.text for r in again] == [r.text for r in first]
        assert all(r.usage.cached_tokens == r.usage.prompt_tokens - 1 for r in again), [r.usage for r in again]
        assert 0 < llm._driver.scheduler.prefixes.kept_bytes <= 64 << 20
        llm.clear_cache()
        assert llm._driver.scheduler.prefixes.kept_bytes == 0
    with Llama(smollm2, n_ctx=512, n_parallel=1) as llm:
        for p in prompts:
            llm.generate(p, max_tokens=1)
        assert llm.generate(prompts[0], max_tokens=1).usage.cached_tokens < 10


def test_copied_prefix(smollm2: Path) -> None:
    """A prefix that another slot holds is copied, with and without a unified KV cache, and gives the same text."""
    base = "Numbers in words: one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve. " * 6
    prompts = [base + tail for tail in ("A", "B", "C", "D")]
    for kv_cells in (None, 1536):
        with Llama(smollm2, n_ctx=512, n_parallel=3, kv_cells=kv_cells) as llm:
            cold = [llm.generate(p, max_tokens=6, temperature=0, prefix_cache=False).text for p in prompts]
            llm.generate(prompts[0], max_tokens=1)
            warm = llm.generate(prompts, max_tokens=6, temperature=0)
            assert [r.text for r in warm] == cold
            assert all(r.usage.cached_tokens > 64 for r in warm), [r.usage for r in warm]


def test_full_kv_cache_loses_no_request(smollm2: Path) -> None:
    """With fewer KV cells than the requests need, some wait; all get their own answer."""
    with Llama(smollm2, n_ctx=256, n_parallel=4, kv_cells=256) as llm:
        alone = {p: llm.generate(p, max_tokens=90, temperature=0, ignore_eos=True).token_ids for p in PROMPTS}
        llm.clear_cache()
        results = llm.generate(PROMPTS * 2, max_tokens=90, temperature=0, ignore_eos=True)
        assert [len(r.token_ids) for r in results] == [90] * 8
        # cells in another order round otherwise, so a close choice may fall the other way later on
        assert [r.token_ids[:3] for r in results] == [alone[p][:3] for p in PROMPTS * 2]


def test_cancel_by_leaving_the_stream(llm: Llama) -> None:
    """Leaving a stream's loop ends its request; the slot is free for the next."""
    for chunk in llm.stream(STORY, max_tokens=400):
        assert chunk.finish_reason is None
        break
    before = llm.metrics().cancelled
    llm.generate(STORY, max_tokens=2)
    assert llm.metrics().cancelled == before + 1
    assert llm.metrics().running == 0


def test_timeout(llm: Llama) -> None:
    """A request that is too late ends as "cancelled", with what it had."""
    done = llm.generate(STORY, max_tokens=450, timeout=0.3, ignore_eos=True)
    assert done.finish_reason == "cancelled"
    assert 0 < len(done.token_ids) < 450


def test_threads_share_one_llama(llm: Llama) -> None:
    """Eight threads, generating and streaming: each gets the answer of its own prompt."""
    want = {p: llm.generate(p, max_tokens=10, temperature=0, prefix_cache=False).text for p in PROMPTS}
    wrong: list[object] = []

    def work(i: int) -> None:
        try:
            for k in range(3):
                prompt = PROMPTS[(i + k) % len(PROMPTS)]
                if (i + k) % 2:
                    text = llm.generate(prompt, max_tokens=10, temperature=0).text
                else:
                    text = "".join(c.text for c in llm.stream(prompt, max_tokens=10, temperature=0))
                if text != want[prompt]:
                    wrong.append((prompt, text))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert llm.metrics().running == llm.metrics().queued == 0


@pytest.mark.parametrize("draft", ["ngram", "model"])
def test_speculative_decoding_is_greedy_decoding(smollm2: Path, draft: str) -> None:
    """Drafted tokens change the speed, never a greedy text; the model drafting for itself is mostly right."""
    prompts = ["one two three four one two three four one two", STORY]
    with Llama(smollm2, n_ctx=256, n_parallel=2) as plain:
        want = plain.generate(prompts, max_tokens=40, temperature=0)
    with Llama(smollm2, n_ctx=256, n_parallel=2, draft="ngram" if draft == "ngram" else smollm2) as llm:
        got = llm.generate(prompts, max_tokens=40, temperature=0)
    assert [r.text for r in got] == [r.text for r in want]
    assert got[0].timings.accepted > 5
    assert got[0].timings.drafted >= got[0].timings.accepted
    if draft == "model":
        assert got[1].timings.accepted > 0.7 * got[1].timings.drafted


def test_interrupt_leaves_a_usable_llama(smollm2: Path) -> None:
    """Ctrl-C in the middle of a generation: KeyboardInterrupt, then the same Llama answers as before."""
    code = f"""
import os, signal, sys, threading
from llcuda_ffi import Llama
llm = Llama({str(smollm2)!r}, n_ctx=512, n_parallel=2)
want = llm.generate("Once upon a time", max_tokens=8, temperature=0).text
for wait in (0.05, 0.11, 0.23, 0.31):
    timer = threading.Timer(wait, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        llm.generate(["Tell me more"] * 4, max_tokens=400, ignore_eos=True)
        sys.exit("not interrupted")
    except KeyboardInterrupt:
        pass
    timer.join()
    assert llm.generate("Once upon a time", max_tokens=8, temperature=0).text == want
m = llm.metrics()
assert m.running == 0 and m.queued == 0, m
llm.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_close(smollm2: Path) -> None:
    """After close every use raises ClosedError; closing twice is fine; streams end."""
    llm = Llama(smollm2, n_ctx=256, n_parallel=1)
    stream = llm.stream(STORY, max_tokens=50)
    next(stream)
    llm.close()
    llm.close()
    assert llm.closed
    with pytest.raises(ClosedError):
        llm.generate(STORY)
    with pytest.raises(LlcudaError):
        list(stream)
    assert "closed" in repr(llm)


def test_bad_model_files(tmp_path: Path) -> None:
    """No file, a folder, no GGUF: one exception each."""
    with pytest.raises(ModelNotFound):
        Llama(tmp_path / "none.gguf")
    with pytest.raises(ModelNotFound):
        Llama(tmp_path)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model at all" * 10)
    with pytest.raises(InvalidModelFile):
        Llama(bad)


def test_truncated_model(smollm2: Path, tmp_path: Path) -> None:
    """A model whose end is missing is refused before libllama sees it."""
    cut = tmp_path / "cut.gguf"
    with smollm2.open("rb") as source:
        cut.write_bytes(source.read(5_000_000))
    with pytest.raises(InvalidModelFile):
        Llama(cut)


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
    ],
)
def test_bad_llama_settings(smollm2: Path, settings: dict[str, object]) -> None:
    """A bad setting of Llama is one InvalidRequest; nothing stays loaded."""
    with pytest.raises(InvalidRequest):
        Llama(smollm2, **settings)  # type: ignore[arg-type]


def test_signal_module_is_untouched() -> None:
    """Importing and using the package installs no signal handler."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
