"""Contexts of impossible sizes and values, results that are not there."""

from __future__ import annotations

import functools

from llcuda_ffi.core.adapter import LoraAdapter
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.sampler import SamplerChain
from llcuda_ffi.errors import InvalidRequest, LlcudaError, ModelError, UnsupportedModel
from llcuda_ffi.native import log

from ..support.tiny_model import tiny_llama
from .world import World, refuses, row


@row
def context_of_a_vocabulary(w: World) -> None:
    model = w.load(tiny_llama(), "vocab-only", vocab_only=True)
    refuses(UnsupportedModel, lambda: Context(model))
    assert len(model.vocab.tokenize("the quick"))
    refuses(InvalidRequest, lambda: LoraAdapter.load(model, w.folder / "none.gguf"))


@row
def sizes_of_a_context(w: World) -> None:
    for settings in (
        {"n_seq_max": 33},
        {"n_batch": 0},
        {"n_ubatch": 0},
        {"n_seq_max": 4, "n_outputs_max": 3},
        {"n_seq_max": 0},
        {"n_seq_max": 100_000, "n_batch": 100_000},
        {"n_ctx": -1},
        {"n_ctx": 2**32},
        {"n_threads": 0},
        {"n_threads": 100_000},
        {"n_batch": True},
        {"n_ctx": 1.5},
        {"nctx": 5},
    ):
        refuses(InvalidRequest, functools.partial(w.context, **settings))


@row
def caches_beyond_the_memory(w: World) -> None:
    """Refused before libllama takes the memory for its cells, tens of GB, and the system ends the process."""
    model = w.load(tiny_llama(layers=64), "layers")
    with open("/proc/meminfo", encoding="ascii") as lines:
        free = sum(int(line.split()[1]) for line in lines if line.startswith(("MemTotal:", "SwapTotal:"))) * 1024
    refuses(ModelError, lambda: Context(model, n_ctx=min(2**31 - 1, free // (64 * 128)), type_k="F32", type_v="F32"))


@row
def mean_pooling_of_a_broken_share(w: World) -> None:
    for kind in ("llama", "bert"):
        for settings in ({"n_ubatch": 256}, {"n_ubatch": 100}, {"n_ctx": 260, "n_ubatch": 512}):
            make = functools.partial(
                w.context,
                kind,
                embeddings=True,
                pooling_type="MEAN",
                **{"n_ctx": 256, "n_batch": 512, "n_seq_max": 24, **settings},
            )
            if w.model(kind).library.profile.name == "b7698":
                make()
            else:
                refuses(InvalidRequest, make)
        w.context(kind, embeddings=True, pooling_type="MEAN", n_ctx=256, n_batch=512, n_ubatch=240, n_seq_max=24)


@row
def values_outside_the_enums(w: World) -> None:
    for name in ("pooling_type", "attention_type", "flash_attn_type", "type_k", "type_v", "rope_scaling_type"):
        for value in (99, -2, "NOPE", None, 2**40, 1.0, True):
            refuses(InvalidRequest, functools.partial(w.context, **{name: value}))
    for name in ("split_mode", "load_mode"):
        for value in (99, -2, "NOPE", None, True):
            refuses(InvalidRequest, functools.partial(w.load, tiny_llama(), "enums", **{name: value}))


@row
def pooling_that_the_model_lacks(w: World) -> None:
    for pooling in ("RANK", "CLS", "LAST", "MEAN"):
        try:
            with w.context(pooling_type=pooling, embeddings=True) as context:
                context.decode(w.batch())
                context.sequence_embedding(0)
        except LlcudaError:
            pass


@row
def cache_types_that_do_not_fit(w: World) -> None:
    for kind in ("Q8_0", "Q4_0", "IQ4_NL", "Q5_1", "BF16", "F32"):  # heads of 8 values, blocks of 32
        for flash in ("AUTO", "ENABLED", "DISABLED"):
            try:
                with w.context(type_k=kind, type_v=kind, flash_attn_type=flash) as context:
                    context.decode(w.batch())
            except (ModelError, InvalidRequest):
                pass


@row
def log_that_is_no_utf8(w: World) -> None:
    ffi = w.model().library.ffi
    with log.listen() as heard:
        log._callback(4, ffi.new("char[]", b"bad \xff\xfe byte\n"), ffi.NULL)
    assert heard.lines() == ["bad \ufffd\ufffd byte"]


@row
def no_memory_for_the_cache(w: World) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard))
    try:
        refuses(ModelError, lambda: w.context(n_ctx=1 << 29, type_k="F32", type_v="F32", flash_attn_type="DISABLED"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@row
def result_of_a_row_that_is_not_there(w: World) -> None:
    context = w.decoded(embeddings=True)
    for index in (4, -5, 2**31, -(2**31)):
        refuses(IndexError, functools.partial(context.logits, index))
        refuses(IndexError, functools.partial(context.embeddings, index))
    refuses(IndexError, lambda: w.decoded().logits(0))
    refuses(IndexError, lambda: w.context().logits())
    refuses(InvalidRequest, lambda: w.decoded().embeddings())
    bert = w.context("bert", embeddings=True)
    bert.encode(w.batch(output="all"))
    refuses(InvalidRequest, lambda: bert.sequence_embedding(300))
    refuses(InvalidRequest, lambda: bert.sequence_embedding(-1))


@row
def sample_without_logits(w: World) -> None:
    chain = SamplerChain(w.model()).greedy()
    refuses(IndexError, lambda: chain.sample(w.context()))
    refuses(IndexError, lambda: chain.sample(w.decoded(), 0))
    refuses(InvalidRequest, lambda: chain.sample(w.decoded("qwen2")))


@row
def sequences_of_an_encoder_decoder(w: World) -> None:
    refuses(UnsupportedModel, lambda: w.context("t5", n_seq_max=2))
    with w.context("t5", n_seq_max=2, kv_unified=True) as context:
        refuses(InvalidRequest, lambda: context.decode(w.batch()))
        context.encode(w.batch(output="all"))
        context.decode(w.batch(1))
