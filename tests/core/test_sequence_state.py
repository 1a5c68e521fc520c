"""States of sequences taken apart and put together again, for every kind of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.sequence_state import KVRows, SequenceState, StateLayout
from llcuda_ffi.core.state import read_sequence, write_sequence
from llcuda_ffi.errors import InvalidRequest

from ..support.generation import known_kinds
from ..support.tiny_architectures import TINY, lively

KINDS = ["llama", "deepseek2", "gemma3", "mamba", "lfm2", "lfm2-window", "granite-hybrid", "qwen35"]
FULL = ("llama", "deepseek2")  # their partial state is the whole one
TOKENS = [3 + i * 7 % 240 for i in range(150)]


def feed(context: Context, tokens: list[int], start: int, seq: int) -> np.ndarray:
    batch = Batch(len(tokens), 1)
    batch.extend(tokens, start, seq)
    context.decode(batch)
    return context.logits()


def parsed(context: Context, seq: int) -> tuple[bytes, SequenceState]:
    data = bytes(read_sequence(context, seq))
    partial = len(read_sequence(context, seq, partial_only=True))
    return data, SequenceState.parse(data, StateLayout.of(context), partial)


@pytest.mark.parametrize("flash_attn", ["ENABLED", "DISABLED"])
@pytest.mark.parametrize("name", known_kinds(KINDS))
def test_apart_and_together(tmp_path: Path, name: str, flash_attn: str) -> None:
    """A state in parts gives the same bytes; cut into pieces, joined and moved to contexts with other sequences and
    shared cells, it goes on as if never moved. What is cut short or changed in its counts is refused."""
    lively(TINY[name]()).write(tmp_path / "model")
    settings: dict[str, Any] = {"n_ctx": 768, "n_threads": 1, "flash_attn_type": flash_attn}
    with (
        Model.load(tmp_path / "model") as model,
        Context(model, n_seq_max=3, **settings) as first,
        Context(model, n_seq_max=2, **settings) as second,
        Context(model, n_seq_max=4, kv_unified=True, **settings) as third,
    ):
        feed(first, TOKENS[:9], 0, 0)
        feed(first, TOKENS, 0, 2)
        data, state = parsed(first, 2)
        assert len(state.to_bytes(3)) == len(data)
        if name not in FULL:
            assert len(state.partial_bytes(3)) == len(read_sequence(first, 2, partial_only=True))
        if state.base is not None:
            assert len(state.base) == len(TOKENS)
            cut = [state.base.part(0, 64), state.base.part(64, 128), state.base.part(128, len(TOKENS))]
            joined = SequenceState(state.head, KVRows.join(cut), state.window, state.recurrent)
            assert joined.to_bytes(2) == state.to_bytes(2)
            with pytest.raises(InvalidRequest, match="do not fit"):
                KVRows.join([cut[0], cut[2]])
        expected = feed(first, [5], len(TOKENS), 2)
        for target, streams in ((second, 2), (third, 1)):
            write_sequence(target, 1, state.to_bytes(streams))
            memory = target.memory
            assert memory is not None
            assert memory.holds(1, len(TOKENS))
            np.testing.assert_allclose(feed(target, [5], len(TOKENS), 1), expected, atol=2e-2)
        layout = StateLayout.of(first)
        partial = len(read_sequence(first, 2, partial_only=True))
        h = layout.head
        broken = [b"", data[:h], data[:h] + b"\2" + data[h + 1 :]]  # two streams, or two recurrent states
        if state.base is not None:
            broken += [data[:-1], data[:40], data + b"\0", data[: h + 4] + b"\xff\xff\xff\x7f" + data[h + 8 :]]
        for bad in broken:
            with pytest.raises(InvalidRequest):
                SequenceState.parse(bad, layout, partial)
