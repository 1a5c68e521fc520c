"""Encoder-decoder models: Llama gives what encode and decode give by hand, whatever else is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Batch, Context, Embedder, Llama, Model
from llcuda_ffi.errors import UnsupportedModel

from ..support.tiny_architectures import TINY

PROMPTS = [[10, 11, 12, 13], [20, 21, 22], list(range(30, 80))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("t5") / "t5.gguf"
    TINY["t5"]().write(found)
    return found


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Llama]:
    with Llama(path, n_ctx=128, n_parallel=4, n_threads=1) as llm:
        yield llm


def by_hand(path: Path, prompt: list[int], answer: list[int]) -> list[float]:
    """The log probability of each token of an answer: encode, then decode from the start token."""
    with Model.load(path) as model, Context(model, n_ctx=128, n_batch=128, n_ubatch=128, n_threads=1) as context:
        batch = Batch(128)
        batch.extend(prompt, output="all")
        context.encode(batch)
        found = []
        start = model.decoder_start_token
        assert start is not None
        for i, (last, token) in enumerate(zip([start, *answer], answer, strict=False)):
            batch.clear()
            batch.add(last, i, output=True)
            context.decode(batch)
            logits = context.logits().astype(np.float64)
            found.append(float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
        return found


def test_as_by_hand(path: Path, llm: Llama) -> None:
    """Alone, in a list, several of one prompt, and streamed: the same tokens, with the probabilities of the oracle."""
    settings = {"max_tokens": 12, "temperature": 1.3, "seed": 5, "logprobs": 0, "ignore_eos": True}
    alone = [llm.generate(prompt, **settings) for prompt in PROMPTS]
    assert len({tuple(answer.token_ids) for answer in alone}) == len(PROMPTS)  # the prompt matters
    for prompt, answer in zip(PROMPTS, alone, strict=True):
        assert answer.logprobs is not None
        got = [entry.logprob for entry in answer.logprobs]
        assert np.allclose(got, by_hand(path, prompt, list(answer.token_ids)), atol=1e-3)
    together = llm.generate(PROMPTS, **settings)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    several = llm.generate(PROMPTS[0], n=3, **settings)
    assert several[0].token_ids == alone[0].token_ids
    streamed = [token for chunk in llm.stream(PROMPTS[1], **settings) for token in chunk.token_ids]
    assert streamed == list(alone[1].token_ids)
    assert all(answer.usage.cached_tokens == 0 for answer in (*alone, *together))


def test_what_it_lacks(path: Path, llm: Llama) -> None:
    """Shifting, scoring a prompt and drafts are refused by name."""
    with pytest.raises(UnsupportedModel, match="shifted"):
        llm.generate(PROMPTS[0], overflow="shift")
    with pytest.raises(UnsupportedModel, match="prompt_logprobs"):
        llm.generate(PROMPTS[0], max_tokens=4, prompt_logprobs=1)
    with pytest.raises(UnsupportedModel, match="draft"):
        Llama(path, n_ctx=128, draft="ngram")


def test_embeddings(path: Path, tmp_path: Path) -> None:
    """Vectors of T5's encoder are those of the same weights as an encoder alone, packed or not."""
    alone = TINY["t5encoder"]()
    alone.write(tmp_path / "t5encoder.gguf")
    texts = ["the quick brown fox", "jumps", "over the lazy dog and on"]
    with Embedder(path, n_contexts=1) as both, Embedder(tmp_path / "t5encoder.gguf", n_contexts=1) as encoder:
        want = np.stack([encoder.encode(text) for text in texts])
        assert np.allclose(both.encode(texts), want, atol=1e-4)
        assert np.allclose(encoder.encode(texts), want, atol=1e-4)
        assert np.allclose(both.encode_tokens(texts[0]), encoder.encode_tokens(texts[0]), atol=1e-3)
        assert not np.allclose(want[0], want[1], atol=0.1)
