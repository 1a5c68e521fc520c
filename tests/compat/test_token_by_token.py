"""llama-cpp-python's generate, eval and sample: one state over the tokens of a call."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from llcuda_ffi.compat.llama_cpp import Llama, LlamaGrammar
from llcuda_ffi.errors import InvalidRequest

from ..support.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """A tiny model."""
    path = tmp_path_factory.mktemp("tokens") / "model.gguf"
    make_tiny_llama(path)
    with Llama(path, n_ctx=64, verbose=False) as llm:
        yield llm


def test_grammar(llm: Llama) -> None:
    """The grammar goes on from token to token, to its end."""
    grammar = LlamaGrammar.from_string('root ::= "yes and no"')
    prompt = llm.tokenize(b"Is it?")
    made = []
    for token in llm.generate(prompt, grammar=grammar):
        if llm.llm.vocab.is_eog(token):
            break
        made.append(token)
    assert llm.detokenize(made) == b"yes and no"
    assert llm.eval_tokens == [*prompt, *made]
    made = list(llm.generate(prompt, grammar=grammar))
    assert llm.detokenize(made) == b"yes and no"
    assert len(prompt) + len(made) == 64  # a reader who does not stop at the end gets nothing else


def test_ends(llm: Llama) -> None:
    """Beyond the model's end, to the end of the context; leaving it early leaves the Llama free."""
    end = llm.token_eos()
    made = list(llm.generate([5, 6], temp=0.0, logits_processor=[lambda ids, row: _only(row, end)]))
    assert made == [end] * 62
    tokens = llm.generate([5, 6], temp=0.0)
    first = next(tokens)
    assert llm("Once", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert first == next(llm.generate([5, 6], temp=0.0))


def _only(row: object, token: int) -> object:
    row[:] = -float("inf")  # type: ignore[index]
    row[token] = 0  # type: ignore[index]
    return row


def test_sent(llm: Llama) -> None:
    """What is sent stands before the next token."""
    tokens = llm.generate([5, 6], temp=0.0)
    first = next(tokens)
    second = tokens.send([7, 8])
    assert llm.eval_tokens == [5, 6, first, 7, 8]
    assert second == next(llm.generate([5, 6, first, 7, 8], temp=0.0))


def test_changed_between(llm: Llama) -> None:
    """What is evaluated, or taken back, between two tokens counts for the next."""
    tokens = llm.generate([5, 6], temp=0.0)
    first = next(tokens)
    llm.n_tokens = 1
    second = next(tokens)
    assert (llm.eval_tokens, second) == ([5, first], next(llm.generate([5, first], temp=0.0)))


@pytest.mark.parametrize("mode", [1, 2])
def test_mirostat(llm: Llama, mode: int) -> None:
    """Its surprise is kept from token to token: the tokens are those of a completion with the same seed."""
    asked = {"mirostat_mode": mode, "mirostat_tau": 2.0}
    llm.set_seed(7)
    made = list(islice(llm.generate([5, 6], temp=1.5, **asked), 12))
    llm.set_seed(7)
    done = llm([5, 6], temperature=1.5, max_tokens=12, **asked)
    n = done["usage"]["completion_tokens"]
    assert llm.detokenize(made[:n]).decode("utf-8", "replace") == done["choices"][0]["text"]


def test_same_as_eval_and_sample(llm: Llama) -> None:
    """generate, and eval with sample, choose the same tokens; no tokens are nothing to compute."""
    made = list(islice(llm.generate([5, 6], temp=0.0), 4))
    llm.reset()
    with pytest.raises(InvalidRequest, match="eval"):
        llm.sample()
    llm.eval([])
    llm.eval([5, 6])
    for token in made:
        assert llm.sample(temp=0.0) == token
        llm.eval([token])
    assert llm.n_tokens == 6
