"""Vocabulary calls and model files."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from llcuda_ffi.core.model import Model
from llcuda_ffi.core.sampler import SamplerChain
from llcuda_ffi.errors import InvalidModelFile, InvalidRequest, ModelError, ModelNotFound

from ..support.tiny_model import TinyFile, Typed, tiny_llama
from .world import World, refuses, row


@row
def token_id_outside_the_vocabulary(w: World) -> None:
    vocab = w.model().vocab
    chain = SamplerChain(w.model()).greedy()
    for token in (-1, vocab.n_tokens, 2**31, -(2**31), 2**40):
        for call in (
            vocab.text, vocab.piece, vocab.score, vocab.attributes, vocab.is_eog, vocab.is_control, chain.accept,
            lambda t: vocab.detokenize([1, t]),
        ):  # fmt: skip
            refuses(InvalidRequest, functools.partial(call, token))
    for wrong in ("a", None, 1.5, True):
        refuses(InvalidRequest, functools.partial(vocab.text, wrong))
    refuses(InvalidRequest, lambda: vocab.detokenize(np.array([2**40])))
    refuses(InvalidRequest, lambda: vocab.detokenize(np.array([[1]])))
    refuses(InvalidRequest, lambda: vocab.detokenize(np.array([1.0])))


@row
def text_beyond_two_gigabytes(w: World) -> None:
    refuses(InvalidRequest, lambda: w.model().vocab.tokenize(bytes(2**31)))
    refuses(InvalidRequest, lambda: w.model().vocab.tokenize(None))  # type: ignore[arg-type]


@row
def long_run_of_one_kind_of_character(w: World) -> None:
    for pre in ("deepseek-llm", "deepseek-coder", "falcon", "gpt-2"):
        file = tiny_llama()
        file.metadata["tokenizer.ggml.pre"] = pre
        with w.load(file, pre, vocab_only=True) as model:
            for text in ("!" * 100_000, "a" * 100_000, " " * 100_000, "\u4e2d" * 50_000, "1" * 100_000, "\n" * 100_000):
                ids = model.vocab.tokenize(text)
                assert model.vocab.detokenize(ids) == text, pre


@row
def path_that_is_none(w: World) -> None:
    for path in (None, "a\0b", b"\0", 5, []):
        refuses(InvalidRequest, functools.partial(Model.load, path))  # type: ignore[arg-type]
    refuses(ModelNotFound, lambda: Model.load(w.folder))
    refuses(ModelNotFound, lambda: Model.load(w.folder / "none.gguf"))


@row
def broken_file(w: World) -> None:
    whole = tiny_llama().bytes()
    path = w.folder / "broken.gguf"
    for raw in (b"", b"GGUF", b"x" * 1000, whole[:100], whole[: len(whole) // 2], whole[:-1000], b"GGML" + whole[4:]):
        path.write_bytes(raw)
        refuses(InvalidModelFile, lambda: Model.load(path))


@row
def file_that_contradicts_itself(w: World) -> None:
    def with_(**values: Any) -> TinyFile:
        file = tiny_llama()
        file.metadata.update({key.replace("__", "."): value for key, value in values.items()})
        return file

    tokens = tiny_llama().metadata["tokenizer.ggml.tokens"]
    for file in (
        with_(tokenizer__ggml__tokens=[tokens[1], *tokens[1:]]),
        with_(llama__block_count=0),
        with_(llama__block_count=1 << 30),
        with_(llama__rope__scaling__type="sideways"),
        with_(llama__expert_count=2, llama__expert_used_count=3),
        with_(split__no="one"),
        with_(split__no=Typed("f32", 1.0)),
        with_(llama__attention__head_count=0),
        with_(llama__attention__head_count=5),
        with_(llama__rope__dimension_count=7),
        with_(llama__attention__layer_norm_rms_epsilon=float("nan")),
        with_(llama__attention__layer_norm_rms_epsilon=-1.0),
    ):
        refuses(ModelError, functools.partial(w.load, file, "contradicts"))


@row
def overrides_of_a_load(w: World) -> None:
    for settings in (
        {"kv_overrides": {"k" * 200: 1}},
        {"kv_overrides": {"llama.x": "v" * 200}},
        {"kv_overrides": {"": 1}},
        {"kv_overrides": {"a\0": 1}},
        {"kv_overrides": {"a": None}},
        {"kv_overrides": {"a": 2**70}},
        {"tensor_buft_overrides": {"(": "CPU"}},
        {"tensor_buft_overrides": {"(?<=a)b": "CPU"}},
        {"tensor_buft_overrides": {"[[:nope:]]": "CPU"}},
        {"tensor_buft_overrides": {"a": "no such"}},
        {"devices": ["CUDA99"]},
        {"devices": "CPU"},
        {"tensor_split": []},
        {"tensor_split": [-1.0]},
        {"tensor_split": [1.0] * 1000},
        {"main_gpu": -1},
    ):
        refuses(InvalidRequest, functools.partial(w.load, tiny_llama(), "overrides", **settings))
    with w.load(
        tiny_llama(), "overrides", kv_overrides={f"x.{i}": i for i in range(300)}, tensor_buft_overrides={"ffn": "CPU"}
    ) as model:
        assert model.n_layer == 2
    refuses(ModelError, lambda: w.load(tiny_llama(), "overrides", kv_overrides={"llama.block_count": 1 << 30}))
    refuses(ModelError, lambda: w.load(tiny_llama(), "overrides", kv_overrides={"llama.attention.head_count": 0}))
