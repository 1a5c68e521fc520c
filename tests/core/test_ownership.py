"""Constructors that fail leak nothing and free nothing twice; what lives is freed once, children first."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llcuda_ffi.bundles import InstalledBundle
from llcuda_ffi.core import model as model_module
from llcuda_ffi.core.adapter import LoraAdapter
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.sampler import SamplerChain
from llcuda_ffi.errors import InvalidRequest, LlcudaError, ModelError
from llcuda_ffi.native.load import load

from ..crash.memory import lora
from ..support.recording_library import Failure, RecordingLibrary
from ..support.tiny_model import make_tiny_llama, tiny_llama


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A tiny model, and an adapter beside it."""
    make_tiny_llama(tmp_path / "tiny.gguf")
    lora(tiny_llama()).write(tmp_path / "lora.gguf")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def library(bundle: InstalledBundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingLibrary]:
    """The recorder in place of the library; in the end all must be freed, once, in order."""
    real = load()
    recorder = RecordingLibrary(real.ffi, real.lib)
    monkeypatch.setattr(model_module, "load", lambda _bundle=None: dataclasses.replace(real, lib=recorder))
    yield recorder
    recorder.null.clear()
    recorder.broken.clear()
    gc.collect()
    assert recorder.made
    assert recorder.wrong == []
    assert recorder.live == {}, "leaked"


def make_context(model: Model) -> Context:
    return Context(model, n_ctx=64, n_batch=32, n_threads=1)


def make_chain(model: Model) -> SamplerChain:
    chain = SamplerChain(model).logit_bias({1: 1.0}).penalties(8, 1.1).dry(1.0).infill()
    chain.grammar('root ::= "a"').grammar_lazy('root ::= "b"', tokens=[65])
    chain.top_k(5).top_p(0.9).min_p(0.1).typical(0.9).top_n_sigma(1.0).xtc(0.5).temperature(0.5, 0.1)
    return chain.dist(1)


def make_adapter(model: Model) -> LoraAdapter:
    return LoraAdapter.load(model, model.path.with_name("lora.gguf"))


MADE_FROM_A_MODEL: list[tuple[Callable[[Model], object], str]] = [
    (make_context, "llama_init_from_model"),
    (make_adapter, "llama_adapter_lora_init"),
    (make_chain, "llama_sampler_chain_init"),
    *(
        (make_chain, f"llama_sampler_init_{name}")
        for name in (
            *("logit_bias", "penalties", "dry", "infill", "grammar", "top_k", "top_p", "min_p", "typical"),
            *("top_n_sigma", "xtc", "temp_ext", "dist"),
        )
    ),
    (lambda model: make_chain(model).clone(), "llama_sampler_clone"),
]


def test_everything_is_freed_in_order(library: RecordingLibrary, path: Path) -> None:
    """A model closed first takes its context, adapter and chains with it; closing twice frees once."""
    model = Model.load(path)
    made = [make_context(model), make_adapter(model), make_chain(model), make_chain(model).clone()]
    model.close()
    assert library.live == {}
    for one in (model, *made):
        one.close()


def test_dropped_objects_are_freed(library: RecordingLibrary, path: Path) -> None:
    """Nobody closes anything: garbage collection frees all, also in a cycle."""
    model = Model.load(path)
    cycle = [make_context(model), make_adapter(model), make_chain(model).clone()]
    cycle.append(cycle)  # type: ignore[arg-type]


def test_model_that_does_not_load(library: RecordingLibrary, path: Path) -> None:
    """NULL instead of a model is a ModelError; the next load works."""
    library.null.add("llama_model_load_from_file")
    with pytest.raises(ModelError):
        Model.load(path)
    library.null.clear()
    Model.load(path).close()


@pytest.mark.parametrize("function", ["llama_model_get_vocab", "llama_vocab_n_tokens", "llama_vocab_type"])
def test_model_constructor_interrupted(library: RecordingLibrary, path: Path, function: str) -> None:
    """An exception after the model was loaded, before the object is whole, frees the model."""
    library.broken.add(function)
    with pytest.raises(Failure):
        Model.load(path)
    gc.collect()
    assert library.live == {}


def test_progress_that_raises(library: RecordingLibrary, path: Path) -> None:
    """An exception of the progress callback comes out of load, and the model is freed."""

    def explode(_share: float) -> None:
        raise Failure

    with pytest.raises(Failure):
        Model.load(path, progress=explode)
    Model.load(path).close()


@pytest.mark.parametrize(("make", "function"), MADE_FROM_A_MODEL, ids=[name for _, name in MADE_FROM_A_MODEL])
def test_null_instead_of_an_object(
    library: RecordingLibrary, path: Path, make: Callable[[Model], object], function: str
) -> None:
    """Each function that makes an object answers NULL: an exception, the model stays usable, nothing leaks."""
    model = Model.load(path)
    library.null.add(function)
    with pytest.raises(LlcudaError):
        make(model)
    library.null.clear()
    make(model)
    model.close()


@pytest.mark.parametrize(
    "function",
    ["llama_n_ctx", "llama_n_batch", "llama_n_seq_max", "llama_get_memory", "llama_pooling_type", "llama_n_ctx_seq"],
)
def test_context_constructor_interrupted(library: RecordingLibrary, path: Path, function: str) -> None:
    """An exception after the context was made, before the object is whole, frees the context."""
    model = Model.load(path)
    library.broken.add(function)
    with pytest.raises(Failure):
        make_context(model)
    library.broken.clear()
    make_context(model)
    model.close()


def test_sampler_that_cannot_be_added(library: RecordingLibrary, path: Path) -> None:
    """A sampler that the chain refuses (after the selecting one, or when it is closed) is freed."""
    model = Model.load(path)
    chain = SamplerChain(model).greedy()
    with pytest.raises(InvalidRequest):
        chain.top_k(5)
    with pytest.raises(InvalidRequest):
        chain.grammar_lazy('root ::= "b"', tokens=[65])
    chain.close()
    with pytest.raises(LlcudaError):
        chain.top_k(5)
    model.close()


def test_lazy_grammar_changes_owner_once(library: RecordingLibrary, path: Path) -> None:
    """The grammar that waits outside the chain, joins it, and leaves it at reset, is freed once wherever it is."""
    model = Model.load(path)
    for accepted in ([], [65], [65, 98]):
        chain = SamplerChain(model).grammar_lazy('root ::= "A" "b"', tokens=[65]).greedy()
        for token in accepted:
            try:
                chain.accept(token)
            except InvalidRequest:
                assert model.vocab.piece(token) != b"b"
        chain.clone().close()
        if accepted:
            chain.reset()
        chain.close()
    model.close()
