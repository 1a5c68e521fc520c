"""Lazy grammars: free until the trigger, strict after it, and never the end of the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.sampler import SamplerChain
from llcuda_ffi.errors import InvalidRequest

from ..support.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A tiny llama."""
    path = Path(tmp_path_factory.mktemp("lazy")) / "tiny.gguf"
    make_tiny_llama(path)
    with Model.load(path) as loaded:
        yield loaded


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    """A context that has decoded a prompt."""
    with Context(model, n_ctx=64, n_batch=32, n_threads=1) as made:
        batch = Batch(32)
        batch.extend(model.vocab.tokenize("the quick"))
        made.decode(batch)
        yield made


def feed(chain: SamplerChain, model: Model, text: str) -> None:
    for token in model.vocab.tokenize(text, add_special=False):
        chain.accept(int(token))


def test_free_before_strict_after(model: Model, context: Context) -> None:
    """Before the trigger any token may come; after it only what continues the grammar, from the trigger's group on."""
    chain = SamplerChain(model).grammar_lazy('root ::= "<" [0-9] [0-9] ">"', patterns=["call: *(<)"]).greedy()
    first = chain.sample(context)
    feed(chain, model, " the dog call: ")
    feed(chain, model, "<")
    written = b""
    for _ in range(3):
        written += model.vocab.piece(chain.sample(context))
    assert written[:2].isdigit()
    assert written[2:] == b">"
    assert model.vocab.is_eog(chain.sample(context)), "the grammar is complete: only the end is left"
    chain.reset()
    assert chain.sample(context) == first, "after reset it waits again"


def test_a_token_triggers(model: Model, context: Context) -> None:
    """A trigger token counts as the grammar's first text; the order of the chain's samplers stays as it was built."""
    (start,) = (int(t) for t in model.vocab.tokenize("{", add_special=False))
    chain = SamplerChain(model).top_k(0).grammar_lazy('root ::= "{" "}"', tokens=[start]).temperature(0.5).dist(1)
    twin = chain.clone()
    chain.accept(start)
    assert model.vocab.piece(chain.sample(context)) == b"}"
    after = chain.clone()
    assert model.vocab.is_eog(after.sample(context))
    lib = model.library.lib
    names = [
        model.library.ffi.string(lib.llama_sampler_name(lib.llama_sampler_chain_get(chain.pointer, i)))
        for i in range(4)
    ]
    assert [n.decode().split("-")[0].strip("?+") for n in names] == ["top", "grammar", "temp", "dist"]
    twin.sample(context)  # the clone made before the trigger still waits
    twin.accept(start)
    assert model.vocab.piece(twin.sample(context)) == b"}"


def test_a_trigger_in_the_middle_of_a_token(model: Model, context: Context) -> None:
    """The constrained text may begin inside a token: the rest of the token is fed in other tokens."""
    chain = SamplerChain(model).grammar_lazy('root ::= "e" "zz"', patterns=["th(e)"]).greedy()
    feed(chain, model, " the")
    assert model.vocab.piece(chain.sample(context)) == b"z"


def test_a_trigger_that_the_grammar_refuses(model: Model, context: Context) -> None:
    """libllama would end the process here; the chain stays usable, and waits for a trigger that fits."""
    chain = SamplerChain(model).grammar_lazy('root ::= "xyz"', patterns=["the|x"]).greedy()
    with pytest.raises(InvalidRequest, match="does not allow the trigger's own text"):
        feed(chain, model, "the")
    chain.reset()
    feed(chain, model, "x")
    assert model.vocab.piece(chain.sample(context)) == b"y"


@pytest.mark.parametrize("pattern", ["(", "[a", "a{2,1}", "*a", "(?P<n", "[z-a]", "\\", "\ud800"])
def test_bad_patterns(model: Model, pattern: str) -> None:
    """A pattern that is no regular expression is an exception, whatever std::regex would do."""
    with pytest.raises(InvalidRequest, match="not a regular expression"):
        SamplerChain(model).grammar_lazy('root ::= "a"', patterns=[pattern])


def test_nothing_to_wait_for(model: Model) -> None:
    """A lazy grammar needs a trigger; a text is not a list of patterns."""
    with pytest.raises(InvalidRequest, match="needs a trigger"):
        SamplerChain(model).grammar_lazy('root ::= "a"')
    with pytest.raises(InvalidRequest, match="must be a list"):
        SamplerChain(model).grammar_lazy('root ::= "a"', patterns="the")
