"""What is of a wrong type is an InvalidRequest of ours, not an error from inside, for every method of the low level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Batch, Context, Embedder, GGUFReader, Model, SamplerChain, SamplingParams
from llcuda_ffi.errors import LlcudaError

from ..support.tiny_model import make_tiny_bert

ODD: list[Any] = [
    None, True, 10**400, 10**5000, 0.5, float("nan"), np.int32(3), np.array(3), np.array(["a"]), "", "x", "\ud800",
    "x" * 5000, b"bytes", Path("."), [], [None], [1, "a"], {}, {1: 2}, {1}, object(), int, len, (i for i in range(3)),
    3 + 4j, ..., [[]], SamplingParams(),
]  # fmt: skip


@pytest.fixture(scope="module")
def calls(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[Any], object]]]:
    bert = tmp_path_factory.mktemp("wrong") / "bert.gguf"
    make_tiny_bert(bert)
    with Model.load(tiny_llama) as model, Context(model, n_ctx=64, n_seq_max=2) as context, Embedder(bert) as embedder:
        memory, vocab = context.memory, model.vocab
        assert memory is not None

        def count(value: Any) -> None:
            batch = Batch(4)
            batch.n_tokens = value
            context.decode(batch)

        yield {
            "load": lambda v: Model.load(v).close(),
            "load params": lambda v: Model.load(tiny_llama, v).close(),
            "progress": lambda v: callable(v) or Model.load(tiny_llama, progress=v).close(),
            "template": model.chat_template,
            "label": model.cls_label,
            "context": lambda v: Context(v).close(),
            "context params": lambda v: Context(model, v).close(),
            "seq_ids": lambda v: Batch(4, 2).add(1, 0, v),
            "output": lambda v: Batch(4).add(1, 0, output=v),
            "extend": lambda v: Batch(4).extend(v),
            "outputs": lambda v: Batch(4).extend([1], output=v),
            "n_tokens": count,
            "decode": context.decode,
            "embeddings": context.decode_embeddings,
            "logits": lambda v: context.logits(v) if not isinstance(v, np.integer) else None,
            "causal": context.set_causal,
            "clear": lambda v: memory.clear(data=v),
            "remove": memory.remove,
            "tokenize": vocab.tokenize,
            "special": lambda v: vocab.tokenize("a", parse_special=v),
            "piece": vocab.piece,
            "eog": vocab.is_eog,
            "detokenize": vocab.detokenize,
            "breakers": lambda v: SamplerChain(model).dry(1.0, breakers=v),
            "bias": lambda v: SamplerChain(model).logit_bias(v),
            "grammar": lambda v: SamplerChain(model).grammar(v),
            "apply": lambda v: SamplerChain(model).greedy().apply(v),
            "sample": lambda v: SamplerChain(model).greedy().sample(v),
            "reader": lambda v: GGUFReader(v).close(),
            "encode": embedder.encode,
            "pooling": lambda v: Embedder(embedder.model, pooling=v).close(),
            "threads": lambda v: Embedder(embedder.model, n_threads=v).close(),
            "flash": lambda v: Embedder(embedder.model, flash_attn=v).close(),
            "prompts": lambda v: Embedder(embedder.model, prompts=v).close(),
            "prompt_name": lambda v: embedder.encode("a", prompt_name=v),
            "dtype": lambda v: embedder.encode("a", dtype=v),
            "similarity": lambda v: embedder.similarity(v, [[1.0, 2.0]]),
            "ids": embedder.encode_tokenized,
            "text": embedder.tokenize,
        }


@pytest.mark.parametrize("i", range(len(ODD)))
def test_odd_value(calls: dict[str, Callable[[Any], object]], i: int) -> None:
    """Each odd value at each place is taken, or refused by an exception of ours."""
    strange = {}
    for name, call in calls.items():
        try:
            call(ODD[i])
        except LlcudaError as error:
            str(error)
        except Exception as error:
            strange[name] = repr(error)
    assert not strange
