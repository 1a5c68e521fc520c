"""max_reasoning_tokens: reasoning ends after so many tokens, opened by the prompt or by the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Llama, Model
from llcuda_ffi.engine.sampling.reasoning_budget import ReasoningBudget
from llcuda_ffi.errors import InvalidRequest

from ..support.tiny_model import make_tiny_llama

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if opened %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """A tiny model with a template that thinks."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    make_tiny_llama(path, {"tokenizer.chat_template": TEMPLATE})
    with Llama(path, n_ctx=512, n_parallel=2) as llm:
        yield llm


def opener(llm: Llama) -> object:
    """Makes the model begin with <think>, and never end its reasoning by itself."""
    begin = llm.vocab.tokenize("<think>", add_special=False).tolist()
    n_prompt = len(llm.vocab.tokenize(llm.chat_prompt(MESSAGES), add_special=False, parse_special=True))

    def processor(token_ids: np.ndarray, logits: np.ndarray) -> None:
        done = len(token_ids) - n_prompt
        if done < len(begin):
            logits[:] = -np.inf
            logits[begin[done]] = 0

    return processor


@pytest.mark.parametrize("most", [0, 1, 7])
def test_prompt_opened_it(tiny: Llama, most: int) -> None:
    """So many tokens, then the end; the answer goes on after it, streamed and whole alike."""
    settings = {
        "max_tokens": 60, "temperature": 0, "max_reasoning_tokens": most, "ignore_eos": True,
        "chat_template_kwargs": {"opened": True},
    }  # fmt: skip
    answer = tiny.chat(MESSAGES, **settings)
    reasoning = answer.message.reasoning_content or ""
    assert len(tiny.vocab.tokenize(reasoning, add_special=False)) <= most + 1  # leading blanks are not part of it
    assert answer.text
    chunks = list(tiny.chat_stream(MESSAGES, **settings))
    assert "".join(chunk.content for chunk in chunks) == answer.text
    assert "".join(chunk.reasoning_content for chunk in chunks) == reasoning


def test_the_model_opened_it(tiny: Llama) -> None:
    """The mark that the model writes begins the count; without the budget it thinks to the end."""
    settings = {"max_tokens": 60, "temperature": 0, "ignore_eos": True, "logits_processors": opener(tiny)}
    assert not tiny.chat(MESSAGES, **settings).text
    answer = tiny.chat(MESSAGES, max_reasoning_tokens=5, **settings)
    assert answer.text
    assert answer.message.reasoning_content


def test_answers_without_reasoning_are_left_alone(tiny: Llama) -> None:
    """A model that answers at once is not held; a plain prompt has no reasoning to hold."""
    settings = {"max_tokens": 20, "temperature": 0}
    assert tiny.chat(MESSAGES, max_reasoning_tokens=3, **settings).text == tiny.chat(MESSAGES, **settings).text
    with pytest.raises(InvalidRequest, match="chat"):
        tiny.generate("x", max_reasoning_tokens=3)
    with pytest.raises(InvalidRequest, match="echo"):
        tiny.chat(MESSAGES, echo=True)


def test_several_streams(tiny: Llama) -> None:
    """A chat stream with n > 1 carries the index of each answer; together they are what chat gives."""
    settings = {"n": 2, "max_tokens": 8, "temperature": 1.0, "seed": 3}
    texts = ["", ""]
    for chunk in tiny.chat_stream(MESSAGES, **settings):
        texts[chunk.index] += chunk.content
    assert texts == [choice.message.content for choice in tiny.chat(MESSAGES, **settings).choices]


def test_a_character_is_finished_first(tiny_llama: Path) -> None:
    """Where the limit falls into a character of several tokens its rest comes first: a grammar takes nothing else."""
    with Model.load(tiny_llama) as model:
        vocab = model.vocab
        forced = tuple(vocab.tokenize("</think>", add_special=False, parse_special=False).tolist())
        letters = vocab.tokenize("\U0001f999", add_special=False, parse_special=False).tolist()
        assert len(letters) == 4
        step = ReasoningBudget(2, b"<think>", b"</think>", True, forced).step(vocab)
        written: list[int] = []
        for token in [*letters, *forced]:
            logits = np.zeros(vocab.n_tokens, np.float32)
            step(written, logits)
            assert (logits.max(), logits.min() < 0) == (0, len(written) >= 4)
            assert logits[token] == 0
            written.append(token)
        logits = np.zeros(vocab.n_tokens, np.float32)
        step(written, logits)
        assert not logits.any()
