"""Saving and restoring the state of contexts."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.sequence_state import StateLayout
from llcuda_ffi.core.state import (
    MAGIC,
    SavedState,
    load_state_file,
    restore_state,
    save_state,
    save_state_file,
    state_size,
)
from llcuda_ffi.errors import BackendFailure, InvalidRequest, UnsupportedModel

from ..support.generation import oldest
from ..support.tiny_architectures import TINY
from ..support.tiny_model import make_tiny_bert, make_tiny_llama

TOKENS = [11, 45, 3, 99, 7, 60]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("state") / "tiny.gguf"
    make_tiny_llama(file)
    return file


def feed(context: Context, tokens: list[int], start: int = 0, seq: int = 0) -> np.ndarray:
    """Decode tokens from a position on; the last one's logits."""
    batch = Batch(len(tokens), 4)
    for i, token in enumerate(tokens):
        batch.add(token, start + i, seq, output=i == len(tokens) - 1)
    context.decode(batch)
    return context.logits()


def make(model: Model, **settings: object) -> Context:
    return Context(model, **{"n_ctx": 256, "n_seq_max": 2, "n_threads": 1, **settings})  # type: ignore[arg-type]


@pytest.mark.bundle("v0.5.0")
def test_whole(path: Path, tmp_path: Path) -> None:
    """A context's state, through bytes and a file, goes on in a new context of the same model as if never stopped."""
    with Model.load(path) as model, make(model) as first, make(model) as second, make(model) as third:
        feed(first, TOKENS)
        feed(first, TOKENS[:3], seq=1)
        state = save_state(first, tokens=TOKENS)
        assert state.whole
        assert 0 < len(state.data) <= state_size(first)
        save_state_file(first, tmp_path / "s.state", tokens=TOKENS)
        expected = feed(first, [5], len(TOKENS))
        assert restore_state(second, SavedState.from_bytes(state.to_bytes())).tolist() == TOKENS
        np.testing.assert_array_equal(feed(second, [5], len(TOKENS)), expected)
        assert second.memory is not None
        assert second.memory.positions(1) == (0, 2)
        assert load_state_file(third, tmp_path / "s.state").tolist() == TOKENS
        np.testing.assert_array_equal(feed(third, [5], len(TOKENS)), expected)
        assert [p.name for p in tmp_path.iterdir()] == ["s.state"]


def test_sequence(path: Path, tmp_path: Path) -> None:
    """One sequence's state goes into another sequence of another context; the others there stay."""
    with Model.load(path) as model, make(model) as first, make(model, n_ctx=512) as second:
        feed(first, TOKENS)
        save_state_file(first, tmp_path / "s", 0, tokens=TOKENS)
        expected = feed(first, [5], len(TOKENS))
        feed(second, TOKENS[:2])
        assert load_state_file(second, tmp_path / "s", 1).tolist() == TOKENS
        np.testing.assert_allclose(feed(second, [5], len(TOKENS), seq=1), expected, atol=1e-5)
        assert second.memory is not None
        assert second.memory.positions(0) == (0, 1)


@pytest.mark.bundle("v0.5.0")
def test_foreign(path: Path, tmp_path: Path) -> None:
    """States of another model, of other settings, damaged or cut short are refused; the context works on."""
    make_tiny_llama(tmp_path / "other.gguf", seed=1)
    with Model.load(path) as model, Model.load(tmp_path / "other.gguf") as other, make(model) as context:
        feed(context, TOKENS)
        state = save_state(context)
        sequence = save_state(context, 0)
        expected = feed(context, [5], len(TOKENS))
        with make(other) as foreign, pytest.raises(InvalidRequest, match="saved with model"):
            restore_state(foreign, state)
        with make(model, type_k="F32") as foreign, pytest.raises(InvalidRequest, match="type_k"):
            restore_state(foreign, sequence, 0)
        with make(model, n_ctx=1024) as foreign, pytest.raises(InvalidRequest, match="n_ctx"):
            restore_state(foreign, state)
        with pytest.raises(InvalidRequest, match="no seq_id"):
            restore_state(context, state, 0)
        with pytest.raises(InvalidRequest, match="a seq_id"):
            restore_state(context, sequence)
        with pytest.raises(InvalidRequest, match="from 0 to 1"):
            restore_state(context, sequence, 7)
        with pytest.raises(InvalidRequest, match="from 0 to 1"):
            save_state(context, -1)
        with pytest.raises(InvalidRequest, match="vocabulary"):
            save_state(context, tokens=[-1])
        raw = bytearray(state.to_bytes())
        for broken in (b"", b"x" * 100, raw[:200], bytes(raw[:-1])):
            with pytest.raises(InvalidRequest):
                SavedState.from_bytes(broken)
        raw[-9] ^= 1
        with pytest.raises(InvalidRequest, match="damaged"):
            SavedState.from_bytes(raw)
        with pytest.raises(InvalidRequest, match="cannot be read"):
            load_state_file(context, tmp_path / "none")
        assert context.memory is not None
        context.memory.remove(0, len(TOKENS))
        np.testing.assert_allclose(feed(context, [5], len(TOKENS)), expected, atol=1e-5)


def test_damaged_below_the_header(path: Path) -> None:
    """Bytes that are no state, or not for this cache, end in an exception, and the context goes on."""
    with Model.load(path) as model, make(model) as context:
        feed(context, TOKENS)
        state = save_state(context, 0)
        for data in (b"", b"\xff" * 64, state.data[:40], state.data[: len(state.data) // 2]):
            with pytest.raises(InvalidRequest, match="do not fit"):
                restore_state(context, SavedState(state.header, state.tokens, data), 1)
        unfit = bytes(state.data).replace(struct.pack("<iQ", 1, 32), struct.pack("<iQ", 0, 32))  # rows of F32
        with pytest.raises(BackendFailure, match="could not restore"):
            restore_state(context, SavedState(state.header, state.tokens, unfit), 1)
        restore_state(context, state, 1)
        feed(context, [5], len(TOKENS), seq=1)


def test_no_room(path: Path) -> None:
    """A sequence longer than the target's cache is refused, not half restored."""
    with Model.load(path) as model, make(model, n_seq_max=1, n_ctx=512) as large, make(model, n_seq_max=1) as small:
        feed(large, [i % 100 for i in range(400)])
        state = save_state(large, 0)
        with pytest.raises(BackendFailure, match="room"):
            restore_state(small, state, 0)
        feed(small, TOKENS)


def test_model_without_memory(tmp_path: Path) -> None:
    """BERT keeps nothing between batches."""
    make_tiny_bert(tmp_path / "bert.gguf")
    with Model.load(tmp_path / "bert.gguf") as model, Context(model, n_ctx=64) as context:
        assert context.memory is None
        with pytest.raises(UnsupportedModel, match="no memory"):
            save_state(context)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_hostile(tmp_path: Path, kind: str) -> None:
    """Counts, positions and sequences that libllama would believe are refused under a hash that is right, for one
    sequence and for all; what the context holds stays. What stands before the data is looked at too."""
    TINY[kind]().write(tmp_path / "model")
    with Model.load(tmp_path / "model") as model, make(model) as context:
        feed(context, TOKENS)
        feed(context, TOKENS, seq=1)
        one, whole = save_state(context, 0, tokens=TOKENS), save_state(context, tokens=TOKENS)
        streams = () if kind == "mamba" else (struct.pack("<I", 2),)
        states = [(one, StateLayout.of(context).head, 1), (whole, 4 + len(model.architecture), 2)]
        for state, at, cells in states[: 1 if oldest() else 2]:  # b7698's whole contexts are read as they are
            start = at + 4 * len(streams)
            n = cells if kind == "mamba" else len(TOKENS)
            assert struct.unpack_from("<I", state.data, start) == (n,)
            for place, value in (
                (start, 2**32 - 1),
                (start, 2**31 - 1),
                (start, n + 1),
                (start + 4, 2**31),
                (start + 8, 7),
            ):
                data = bytearray(state.data)
                data[place : place + 4] = value.to_bytes(4, "little")
                forged = SavedState.from_bytes(dataclasses.replace(state, data=data).to_bytes())
                with pytest.raises(InvalidRequest, match="do not fit"):
                    restore_state(context, forged, None if state.whole else 0)
        assert context.memory is not None
        assert context.memory.positions(0) == context.memory.positions(1)
        for changes in ({"kind": []}, {"n_stream": "2"}, {"n_stream": -1}, {"partial_size": 1.5}):
            with pytest.raises(InvalidRequest, match="its parts"):
                SavedState.from_bytes(dataclasses.replace(one, header={**one.header, **changes}).to_bytes())
        for body in (bytes(8) + b"[", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}" + bytes(8)):
            raw = MAGIC + hashlib.sha256(body.ljust(64, b"[")).digest() + body.ljust(64, b"[")
            with pytest.raises(InvalidRequest, match="its parts"):
                SavedState.from_bytes(raw)
