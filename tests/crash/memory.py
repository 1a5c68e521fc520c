"""Adapters, the KV cache, saved states."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from llcuda_ffi.core.adapter import LoraAdapter, set_adapters, set_control_vector
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.state import SavedState, load_state_file, restore_state, save_state
from llcuda_ffi.errors import InvalidRequest, LlcudaError, ModelError, UnsupportedModel

from ..support.tiny_architectures import tiny_qwen2
from ..support.tiny_model import TinyFile, Typed, tiny_llama
from .world import World, refuses, row


def lora(model: TinyFile, rank: int = 2, **metadata: Any) -> TinyFile:
    """A LoRA for one matrix of a tiny llama."""
    file = TinyFile(
        {
            "general.architecture": "llama",
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": 4.0,
            **{key.replace("__", "."): value for key, value in metadata.items()},
        }
    )
    name = "blk.0.attn_q.weight"
    ne = model.tensors[name][0]
    rng = np.random.default_rng(0)
    file.add(f"{name}.lora_a", (ne[0], rank), rng)
    file.add(f"{name}.lora_b", (rank, ne[1]), rng)
    return file


@row
def adapter_that_does_not_fit(w: World) -> None:
    good, path = lora(tiny_llama()), w.folder / "lora.gguf"
    wrong_shape, wrong_name = lora(tiny_llama(embd=64)), lora(tiny_llama())
    wrong_name.tensors = {k.replace("attn_q", "attn_zz"): v for k, v in wrong_name.tensors.items()}
    lonely = lora(tiny_llama())
    del lonely.tensors["blk.0.attn_q.weight.lora_b"]
    for file in (
        wrong_shape, wrong_name, lonely, tiny_llama(), lora(tiny_llama(), general__architecture="qwen2"),
        lora(tiny_llama(), general__type=5), lora(tiny_llama(), adapter__lora__alpha="much"),
        lora(tiny_llama(), adapter__lora__alpha=Typed("u32", 4)), lora(tiny_llama(), adapter__type="other"),
    ):  # fmt: skip
        file.write(path)
        refuses(ModelError, lambda: LoraAdapter.load(w.model(), path))
    path.write_bytes(b"GGUF")
    refuses(ModelError, lambda: LoraAdapter.load(w.model(), path))
    good.write(path)
    LoraAdapter.load(w.model(), path).close()


@row
def adapter_of_another_model_or_closed(w: World) -> None:
    path = w.folder / "fits.gguf"
    lora(tiny_llama()).write(path)
    model = w.load(tiny_llama(), "second")
    other = LoraAdapter.load(model, path)
    context = w.context()
    refuses(InvalidRequest, lambda: set_adapters(context, {other: 1.0}))
    refuses(InvalidRequest, lambda: set_adapters(context, {None: 1.0}))  # type: ignore[dict-item]
    mine = LoraAdapter.load(w.model(), path)
    refuses(InvalidRequest, lambda: set_adapters(context, {mine: float("nan")}))
    set_adapters(context, {mine: 1.0})
    context.decode(w.batch())
    mine.close()  # takes it off the context
    context.decode(w.batch(1, pos=4))
    refuses(LlcudaError, lambda: set_adapters(context, {mine: 1.0}))
    model.close()  # frees its adapter first
    assert other.closed
    other.close()


@row
def control_vector_of_a_wrong_shape(w: World) -> None:
    context = w.context()
    n = w.model().n_embd
    for vector in (np.zeros(3), np.zeros((5, n)), np.full((1, n), np.nan)):
        refuses(InvalidRequest, functools.partial(set_control_vector, context, vector))
    refuses(InvalidRequest, lambda: set_control_vector(context, np.zeros((1, n)), 0, 5))
    set_control_vector(context, np.zeros((1, n)))
    context.decode(w.batch())
    set_control_vector(context, None)


@row
def sequence_id_of_a_memory_call(w: World) -> None:
    context = w.decoded(n_seq_max=4, kv_unified=True)
    memory = context.memory
    assert memory is not None
    for seq in (-2, -1, 4, 300, 2**31):
        for call in (
            memory.remove, memory.keep, memory.positions, functools.partial(memory.copy, 0),
            lambda s: memory.copy(s, 0), lambda s: memory.shift(s, 1), lambda s: memory.divide(s, 2),
        ):  # fmt: skip
            refuses(InvalidRequest, functools.partial(call, seq))
    refuses(InvalidRequest, lambda: memory.remove(0, -1))
    refuses(InvalidRequest, lambda: memory.remove(0, 3, 1))
    refuses(InvalidRequest, lambda: memory.shift(0, 2**31))
    refuses(InvalidRequest, lambda: memory.shift(0, 2**31 - 1))
    refuses(InvalidRequest, lambda: memory.divide(0, 0))
    memory.shift(0, -2)  # below 0: forgotten
    context.decode(w.batch(1, pos=2))


@row
def copy_of_a_part_between_streams(w: World) -> None:
    context = w.decoded(n_seq_max=2, n_ctx=512)
    memory = context.memory
    assert memory is not None
    refuses(InvalidRequest, lambda: memory.copy(0, 1, 1, 3))
    memory.copy(0, 1)
    context.decode(w.batch(1, pos=4, seq=1))
    assert memory.positions(1) == (0, 4)


@row
def shift_where_positions_cannot(w: World) -> None:
    file = tiny_qwen2()
    file.metadata = {k.replace("qwen2.", "qwen2vl.", 1): v for k, v in file.metadata.items()}
    file.metadata["general.architecture"] = "qwen2vl"
    file.metadata["qwen2vl.rope.dimension_sections"] = Typed("array", [1, 1, 2, 0], "i32")
    model = w.load(file, "mrope")
    context = Context(model, n_ctx=64, n_batch=32, n_threads=1)
    context.decode(w.batch())
    memory = context.memory
    assert memory is not None
    assert not memory.can_shift
    refuses(UnsupportedModel, lambda: memory.shift(0, 1))
    refuses(UnsupportedModel, lambda: memory.divide(0, 2))
    context.decode(w.batch(1, pos=4))


@row
def part_of_a_recurrent_state(w: World) -> None:
    context = w.decoded("mamba")
    memory = context.memory
    assert memory is not None
    assert memory.remove(0, 2) is False
    assert memory.remove(0) is True
    context.decode(w.batch())


@row
def state_that_is_garbage(w: World) -> None:
    context = w.decoded()
    good = save_state(context, 0)
    raw = good.to_bytes()
    for bad in (b"", b"x" * 100, raw[:50], raw[:-1], raw + b"\0", raw[:-50] + bytes(50), raw[:20] + b"\xff" + raw[21:]):
        refuses(InvalidRequest, functools.partial(SavedState.from_bytes, bad))
    for data in (b"", b"\0" * 100, b"\xff" * len(good.data), good.data[:-8], good.data[::-1]):
        forged = SavedState(good.header, good.tokens, data)
        refuses(LlcudaError, functools.partial(restore_state, context, forged, 0))
    whole = save_state(context)
    for data in (b"", b"\0" * 100, b"\xff" * len(whole.data), whole.data[:-8]):
        forged = SavedState(whole.header, whole.tokens, data)
        refuses(LlcudaError, functools.partial(restore_state, context, forged))
    refuses(InvalidRequest, lambda: restore_state(context, good))
    refuses(InvalidRequest, lambda: restore_state(context, whole, 0))
    refuses(InvalidRequest, lambda: restore_state(context, good, 9))
    restore_state(context, good, 0)
    context.decode(w.batch(1, pos=4))


@row
def state_file_that_is_garbage(w: World) -> None:
    context, path = w.context(), w.folder / "state.bin"
    refuses(InvalidRequest, lambda: load_state_file(context, path))
    path.write_bytes(b"garbage" * 100)
    refuses(InvalidRequest, lambda: load_state_file(context, path))
    refuses(InvalidRequest, lambda: load_state_file(context, w.folder))
