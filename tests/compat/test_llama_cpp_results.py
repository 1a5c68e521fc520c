"""What llama-cpp-python's users read of results, and import by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi.compat import llama_cpp
from llcuda_ffi.compat.llama_cpp import Llama, LlamaGrammar, LlamaPromptLookupDecoding
from llcuda_ffi.errors import InvalidRequest, UnsupportedModel

from ..support.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    path = tmp_path_factory.mktemp("results") / "model.gguf"
    make_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[Llama]:
    """It, loaded."""
    with Llama(model, n_ctx=128, verbose=False) as llm:
        yield llm


def test_stream_ends_apart(llm: Llama) -> None:
    """The last piece of a stream has the reason alone: a reader that stops there has all the text."""
    asked = {"max_tokens": 4, "temperature": 0, "logprobs": 1}
    choices = [chunk["choices"][0] for chunk in llm("Once", stream=True, **asked)]
    whole = llm("Once", **asked)["choices"][0]
    assert choices[-1] == {"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    tokens = [token for choice in choices[:-1] for token in choice["logprobs"]["tokens"]]
    assert tokens == whole["logprobs"]["tokens"]


def test_end_is_no_token(llm: Llama) -> None:
    """Log probabilities are those of the text: the model's end is not among them, streamed or whole."""
    grammar = LlamaGrammar.from_string('root ::= "yes and no"')
    done = llm("Is it?", grammar=grammar, max_tokens=40, logprobs=0, temperature=0)["choices"][0]
    assert "".join(done["logprobs"]["tokens"]) == done["text"] == "yes and no"
    assert all(done["logprobs"]["tokens"])
    chunks = llm("Is it?", grammar=grammar, max_tokens=40, logprobs=0, temperature=0, stream=True)
    tokens = [t for chunk in chunks for t in (chunk["choices"][0]["logprobs"] or {}).get("tokens", [])]
    assert tokens == done["logprobs"]["tokens"]


def test_vocab_only(model: Path) -> None:
    """A vocabulary without weights tokenizes, and says what it cannot do."""
    with Llama(model, vocab_only=True, verbose=False) as llm:
        assert llm.detokenize(llm.tokenize(b"Hello World", add_bos=False)) == b"Hello World"
        assert llm.n_vocab() > llm.token_eos() >= 0
        with pytest.raises(UnsupportedModel, match="vocab_only"):
            llm("Once")


def test_names() -> None:
    """Types and bases are where llama-cpp-python has them."""
    message = llama_cpp.ChatCompletionRequestUserMessage(role="user", content="x")
    assert message == {"role": "user", "content": "x"}
    for name in ("BaseLlamaCache", "BaseLlamaTokenizer", "LogitsProcessor", "StoppingCriteria", "llama_types"):
        assert hasattr(llama_cpp, name)
    with pytest.raises(InvalidRequest, match="from_json_schema"):
        llama_cpp.llama_grammar.JSON_GBNF  # noqa: B018
    with pytest.raises(AttributeError):
        llama_cpp.nothing_of_the_kind  # noqa: B018


def test_prompt_lookup() -> None:
    """What is drafted can be asked of the class, as llama-cpp-python's own test does."""
    find = LlamaPromptLookupDecoding.find_candidate_pred_tokens
    assert find(np.array([1, 2, 3, 1, 2, 3, 1, 2, 3]), 3, 2).tolist() == [1, 2]
    assert find(np.arange(1, 10), 3, 2).tolist() == []
    assert LlamaPromptLookupDecoding(num_pred_tokens=3)(np.array([4, 5, 6, 4], np.intc)).tolist() == [5, 6, 4]
    assert find(np.array([7]), 3, 2).tolist() == []
