"""Llama: text from the real model, alone and many at once."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Completion, Llama, SamplingParams
from llcuda_ffi.errors import ContextOverflow

STORY = "Once upon a time"
PROMPTS = [STORY, "The capital of France is", "def fib(n):", "One, two, three, four,"]


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
    each = llm.generate(PROMPTS[:2], [SamplingParams(max_tokens=n, ignore_eos=True) for n in (3, 5)])
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
    shifted = llm.generate(tokens, max_tokens=60, overflow="shift", keep=4, ignore_eos=True)
    assert len(shifted.token_ids) == 60


def test_cancel_by_leaving_the_stream(llm: Llama) -> None:
    """Leaving a stream's loop ends its request at once; its slot is free, and its tokens are kept."""
    before = llm.metrics().cancelled
    for chunk in llm.stream(STORY, max_tokens=400):
        assert chunk.finish_reason is None
        break
    assert llm.metrics().cancelled == before + 1
    assert llm.metrics().running == 0
    assert llm.generate(STORY, max_tokens=2).usage.cached_tokens > 0


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
