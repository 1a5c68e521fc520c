"""What users of other engines expect of a generation: bans, ends, log probabilities of the prompt, kinds of prompts."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import llcuda_ffi
from llcuda_ffi import AsyncLlama, Completion, Llama, SamplingParams
from llcuda_ffi.errors import ContextOverflow, InvalidRequest, UnsupportedModel

from ..support.tiny_model import make_tiny_llama

STORY = "Once upon a time"
GREEDY = SamplingParams(max_tokens=12, temperature=0)


def test_allowed_token_ids(llm: Llama) -> None:
    """Nothing else is generated, also with log probabilities and a chain of samplers."""
    allowed = llm.vocab.tokenize(" yes no maybe", add_special=False).tolist()
    for settings in ({"temperature": 0}, {"temperature": 2.0, "top_k": 1000}, {"logprobs": 2}):
        done = llm.generate(STORY, max_tokens=6, ignore_eos=True, allowed_token_ids=allowed, **settings)
        assert set(done.token_ids) <= set(allowed)


def test_bad_words(llm: Llama) -> None:
    """A word that was written is not written, at its place, whether it is one token or several."""
    text = llm.generate(STORY, GREEDY).text
    for word in (text.split()[1], " ".join(text.split()[1:3])):
        assert word in text
        assert word not in llm.generate(STORY, GREEDY, bad_words=[word]).text


def test_logits_processors(llm: Llama) -> None:
    """Functions see the prompt and what was generated, change logits in place or by returning others."""
    seen: list[list[int]] = []
    wanted = llm.vocab.tokenize(" sea", add_special=False)[0]

    def in_place(token_ids: np.ndarray, logits: np.ndarray) -> None:
        seen.append(token_ids.tolist())
        logits[wanted] += 1000

    done = llm.generate(STORY, max_tokens=3, temperature=0, logits_processors=[in_place])
    assert done.text == " sea sea sea"
    assert seen == [[*done.prompt_token_ids, *done.token_ids[:i]] for i in range(3)]

    def returned(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(logits)) == wanted, 0, -np.inf)

    assert llm.generate(STORY, max_tokens=2, logits_processors=returned).text == " sea sea"


def test_a_processor_that_fails_ends_its_request(llm: Llama) -> None:
    """Its exception is told as the cause, other requests go on, and so does the Llama."""

    def broken(token_ids: np.ndarray, logits: np.ndarray) -> None:
        raise KeyError("lost")

    def nothing_left(token_ids: np.ndarray, logits: np.ndarray) -> None:
        logits[:] = -np.inf

    def asks_its_own(token_ids: np.ndarray, logits: np.ndarray) -> None:
        llm.generate(STORY, max_tokens=1)  # nobody would compute it: this thread is inside the step

    for function, words in (
        (broken, "broken failed: KeyError"),
        (nothing_left, "no token to choose"),
        (asks_its_own, "in the middle of a step"),
    ):
        params = [GREEDY.replace(logits_processors=[function]), GREEDY]
        failed, done = llm.generate([STORY, STORY], params, return_exceptions=True)
        assert isinstance(failed, InvalidRequest)
        assert words in str(failed)
        assert len(done.token_ids) == 12
    assert llm.generate(STORY, GREEDY).text == done.text


def test_stop_token_ids(llm: Llama) -> None:
    """A stop token ends the text before what it writes; which stop it was is told."""
    whole = llm.generate(STORY, GREEDY)
    token = whole.token_ids[5]
    assert token not in whole.token_ids[:5]
    done = llm.generate(STORY, GREEDY, stop_token_ids=[token])
    assert (done.finish_reason, done.stop_reason) == ("stop", token)
    assert done.text == llm.vocab.detokenize(whole.token_ids[:5])
    assert done.token_ids == whole.token_ids[:6]
    kept = llm.generate(STORY, GREEDY, stop_token_ids=[token], include_stop_str_in_output=True)
    assert kept.text == llm.vocab.detokenize(whole.token_ids[:6])
    streamed = "".join(c.text for c in llm.stream(STORY, GREEDY, stop_token_ids=[token]))
    assert streamed == done.text


def test_stop_is_told_and_may_be_kept(llm: Llama) -> None:
    """stop_reason is the text that was found; it may stay in the output; None and "" are no stops."""
    whole = llm.generate(STORY, GREEDY)
    word = whole.text.split()[2]
    done = llm.generate(STORY, GREEDY, stop=["nowhere", word])
    assert (done.finish_reason, done.stop_reason) == ("stop", word)
    kept = llm.generate(STORY, GREEDY, stop=word, include_stop_str_in_output=True)
    assert kept.text == done.text + word
    assert "".join(c.text for c in llm.stream(STORY, GREEDY, stop=word, include_stop_str_in_output=True)) == kept.text
    for nothing in (None, "", []):
        assert llm.generate(STORY, GREEDY, stop=nothing).text == whole.text
    assert whole.stop_reason is None


def test_min_tokens(llm: Llama) -> None:
    """Neither the model's end, nor a stop string, nor a stop token ends the answer earlier."""
    prompt = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
    short = llm.generate(prompt, max_tokens=60, temperature=0)
    assert short.finish_reason == "eog"
    least = len(short.token_ids) + 5
    assert len(llm.generate(prompt, max_tokens=60, temperature=0, min_tokens=least).token_ids) >= least
    whole = llm.generate(STORY, GREEDY)
    first = whole.text.split()[0]
    for stop in ({"stop": first}, {"stop_token_ids": whole.token_ids[:1]}):
        assert len(llm.generate(STORY, GREEDY, **stop).token_ids) == 1
        assert len(llm.generate(STORY, GREEDY, min_tokens=3, **stop).token_ids) >= 3


def test_prompt_logprobs(tmp_path: Path) -> None:
    """They are what the prompt's beginnings give, in several batches too, and with a warm prefix cache."""
    make_tiny_llama(tmp_path / "tiny.gguf")
    with Llama(tmp_path / "tiny.gguf", n_ctx=256, n_parallel=3, n_batch=32, n_ubatch=32) as tiny:
        prompt = STORY + " there was a small house by the sea, and" * 4
        tiny.generate(prompt, max_tokens=1)
        done, beside = tiny.generate([prompt, "One"], max_tokens=4, temperature=0, prompt_logprobs=2)
        ids = done.prompt_token_ids
        assert len(ids) > 64
        assert done.prompt_logprobs[0] is None
        assert [entry.token for entry in done.prompt_logprobs[1:]] == ids[1:]
        beginnings = [ids[:at] for at in range(1, len(ids), 7)]
        for before, one in zip(beginnings, tiny.generate(beginnings, max_tokens=1, logprobs=2), strict=True):
            top = done.prompt_logprobs[len(before)].top
            assert np.allclose(top, one.logprobs[0].top, atol=1e-3)
        again = tiny.generate(prompt, max_tokens=4, temperature=0)
        assert again.token_ids == done.token_ids
        assert again.usage.cached_tokens > 50  # what was computed with them is kept like any prompt
        assert len(beside.prompt_logprobs) == len(beside.prompt_token_ids)
        pair = tiny.generate(prompt, n=2, max_tokens=2, prompt_logprobs=0)
        assert [[e.token for e in one.prompt_logprobs[1:]] for one in pair] == [ids[1:]] * 2


def test_echo_and_no_tokens(llm: Llama) -> None:
    """echo puts the prompt before the text, whole and streamed; max_tokens=0 computes the prompt alone."""
    whole = llm.generate(STORY, GREEDY)
    assert llm.generate(STORY, GREEDY, echo=True).text == STORY + whole.text
    assert llm.generate(STORY, GREEDY, echo=True, stop="upon").text == STORY + whole.text
    assert "".join(c.text for c in llm.stream(STORY, GREEDY, echo=True)) == STORY + whole.text
    ids = llm.vocab.tokenize(STORY)
    assert llm.generate(ids, GREEDY, echo=True).text == STORY + whole.text
    nothing = llm.generate(STORY, max_tokens=0, echo=True, prompt_logprobs=0)
    assert (nothing.text, nothing.token_ids, nothing.finish_reason) == (STORY, [], "length")
    assert len(nothing.prompt_logprobs) == len(ids)
    assert llm.generate(STORY, max_tokens=-1, temperature=0, stop=whole.text.split()[2]).finish_reason == "stop"


def test_results_know_their_prompt(llm: Llama) -> None:
    """The prompt, its ids, the sum of log probabilities; as plain values, as JSON, pickled."""
    done = llm.generate(STORY, GREEDY, logprobs=1)
    assert done.prompt == STORY
    assert done.prompt_token_ids == llm.vocab.tokenize(STORY).tolist()
    assert done.cumulative_logprob == pytest.approx(sum(e.logprob for e in done.logprobs))
    plain = json.loads(done.to_json())
    assert plain == done.to_dict()
    assert plain["usage"]["completion_tokens"] == 12
    assert bytes(plain["logprobs"][0]["bytes"]) == done.logprobs[0].bytes
    assert pickle.loads(pickle.dumps(done)) == done
    assert pickle.loads(pickle.dumps(GREEDY)) == GREEDY
    assert llm.generate(STORY, GREEDY).cumulative_logprob is None


def _generator() -> Iterator[str]:
    yield from ("One", "Two")


class _Series:
    """Like a Series of pandas or Polars: an iterable that is no Sequence."""

    def __iter__(self) -> Iterator[str]:
        return _generator()


@pytest.mark.parametrize(
    "prompts",
    [
        ("One", "Two"),
        np.array(["One", "Two"]),
        np.array(["One", "Two"], object),
        _Series(),
        (text for text in ("One", "Two")),
        dict.fromkeys(["One", "Two"]).keys(),
        [{"prompt": "One"}, {"prompt": "Two"}],
    ],
    ids=["tuple", "array", "objects", "series", "generator", "keys", "mappings"],
)
def test_any_iterable_is_many_prompts(llm: Llama, prompts: object) -> None:
    """Each gives what the list gives."""
    expected = [done.text for done in llm.generate(["One", "Two"], GREEDY)]
    assert [done.text for done in llm.generate(prompts, GREEDY)] == expected


class _Table:
    """Like a DataFrame: an iterable of the names of its columns."""

    columns = ("prompt",)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


def test_what_is_no_prompt_is_named(llm: Llama) -> None:
    """A table, a list where one prompt is wanted, a hole in a column: each error says what to give."""
    with pytest.raises(InvalidRequest, match="one of its columns"):
        llm.generate(_Table())
    with pytest.raises(InvalidRequest, match=r"generate\(\) takes lists"):
        llm.stream(["a", "b"])
    with pytest.raises(InvalidRequest, match=r"prompt 1: .* not float \(nan\)"):
        llm.generate(["a", float("nan")])
    with pytest.raises(InvalidRequest, match="how many of the likeliest"):
        llm.generate("a", logprobs=True)


def test_methods_of_other_libraries_are_named(llm: Llama) -> None:
    """A method that llama-cpp-python or vLLM has raises an AttributeError that says what it is here."""
    for name, here in (("create_chat_completion", "chat()"), ("tokenize", "vocab.tokenize"), ("generat", "generate?")):
        with pytest.raises(AttributeError, match=re.escape(here)):
            getattr(llm, name)
    with pytest.raises(InvalidRequest, match="an argument of Llama"):
        llm.generate("Once", n_ctx=512)
    with pytest.raises(InvalidRequest, match="a setting of generate"):
        Llama("smollm2-135m", temperature=0)
    with pytest.raises(TypeError, match="generate"):
        llm("Once")  # type: ignore[operator]
    with pytest.raises(AttributeError, match="did you mean Llama"):
        llcuda_ffi.LLama  # noqa: B018 # it raises
    with pytest.raises(InvalidRequest, match="not NoneType"):
        Llama(None)


def test_token_ids_as_prompts(llm: Llama) -> None:
    """Ids in a mapping, a tuple, an array; an array of two dimensions and a list of lists are many."""
    ids = llm.vocab.tokenize(STORY).tolist()
    expected = llm.generate(STORY, GREEDY).text
    for one in (ids, tuple(ids), np.array(ids), {"prompt_token_ids": ids}, iter(ids)):
        done = llm.generate(one, GREEDY)
        assert isinstance(done, Completion)
        assert done.text == expected
        assert done.prompt is None
    for many in (np.array([ids, ids]), [ids, np.array(ids)], [{"prompt_token_ids": ids}] * 2):
        assert [done.text for done in llm.generate(many, GREEDY)] == [expected] * 2


def test_a_mapping_for_params(llm: Llama) -> None:
    """A dict of settings is taken; anything else is refused by name."""
    assert llm.generate(STORY, {"max_tokens": 3, "temperature": 0}).usage.completion_tokens == 3
    with pytest.raises(InvalidRequest, match="max_tokens"):
        llm.generate(STORY, {"max_token": 3})
    with pytest.raises(InvalidRequest, match="params must be SamplingParams"):
        llm.generate(STORY, 5)


def test_return_exceptions(llm: Llama) -> None:
    """A prompt that is refused has its exception in its place; without the option it names the prompt."""
    prompts = ["One", "", STORY * 400, "Two"]
    results = llm.generate(prompts, GREEDY, return_exceptions=True)
    assert [type(r) for r in results] == [Completion, InvalidRequest, ContextOverflow, Completion]
    assert isinstance(llm.generate("", GREEDY, return_exceptions=True), InvalidRequest)
    with pytest.raises(InvalidRequest, match="prompt 1"):
        llm.generate(prompts, GREEDY)


def test_stream_of_several(llm: Llama) -> None:
    """The chunks of n completions carry their index; together each is what generate gives."""
    settings = {"n": 3, "max_tokens": 10, "temperature": 1.0, "seed": 7}
    texts, ends = ["", "", ""], []
    for chunk in llm.stream(STORY, **settings):
        texts[chunk.index] += chunk.text
        if chunk.completion is not None:
            assert chunk.completion.index == chunk.index
            ends.append(chunk.completion.text)
    assert sorted(ends) == sorted(texts)
    assert texts == [done.text for done in llm.generate(STORY, **settings)]


def test_async_takes_the_same(smollm2: Path) -> None:
    """Iterables, exceptions as results, several streams: awaited."""

    async def main() -> None:
        async with AsyncLlama(smollm2, n_ctx=256, n_parallel=2) as llm:
            results = await llm.generate((p for p in ("One", "")), GREEDY, return_exceptions=True)
            assert [type(r) for r in results] == [Completion, InvalidRequest]
            texts = ["", ""]
            async for chunk in llm.stream(STORY, n=2, max_tokens=6, seed=1):
                texts[chunk.index] += chunk.text
            assert texts == [done.text for done in await llm.generate(STORY, n=2, max_tokens=6, seed=1)]

    asyncio.run(main())


def test_infill(llm: Llama, tmp_path: Path) -> None:
    """The marks stand where the model wants them, and nothing in the texts is one; other models say what they lack."""
    path = tmp_path / "fim.gguf"
    marks = {"prefix": 5, "suffix": 6, "middle": 7}
    make_tiny_llama(path, {f"tokenizer.ggml.{name}_token_id": token for name, token in marks.items()})
    with Llama(path, n_ctx=64, n_parallel=1) as code:
        vocab = code.vocab
        a, b = (vocab.tokenize(text, add_special=False, parse_special=False).tolist() for text in ("a <|im_end|>", "b"))
        assert code.infill_prompt("a <|im_end|>", "b").tolist() == [5, *a, 6, *b, 7]
        assert code.infill("a", "b", max_tokens=2, temperature=0).prompt_token_ids[0] == 5
    with pytest.raises(UnsupportedModel, match="filling in the middle"):
        llm.infill("a", "b")
