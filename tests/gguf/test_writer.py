"""The GGUF writer, read back by our reader and by the gguf package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.gguf import GGMLType, GGUFReader, ValueType, check
from llcuda_ffi.gguf.writer import Encoded, Typed, copied_metadata, copied_tensor, write_gguf

from ..support.tiny_model import make_tiny_llama

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text("abc.", min_size=1).map(lambda key: "x." + key),
        SCALARS
        | st.lists(st.integers(0, 2**32 - 1), min_size=1)
        | st.lists(st.text("ab é"), min_size=1)
        | st.lists(st.booleans(), min_size=1)
        | st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    )
)
def test_metadata_round_trip(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, object]) -> None:
    """Every value comes back as it was."""
    path = write_gguf(tmp_path_factory.mktemp("w") / "a.gguf", metadata, {})
    with GGUFReader(path) as reader:
        assert set(reader.metadata) == set(metadata)
        for key, value in metadata.items():
            found = reader.metadata[key]
            assert (list(found) if isinstance(value, list) else found) == value


def test_types_and_tensors(tmp_path: Path) -> None:
    """Named types, every numpy dtype, encoded bytes, another alignment: as the gguf package reads them."""
    from gguf import GGUFReader as Reference

    rng = np.random.default_rng(0)
    arrays = {
        f"t.{dtype}": (rng.standard_normal((3, 5, 2)) * 50).astype(dtype)
        for dtype in ("f4", "f2", "f8", "i1", "i2", "i4", "i8", ">f4")
    }
    blocks = rng.integers(0, 256, (4, 36), np.uint8)
    tensors = {**arrays, "q": Encoded(GGMLType.Q4_0, (4, 64), lambda: blocks[:, :36])}
    metadata = {
        "general.architecture": "llama",
        "a": Typed(3, ValueType.UINT16),
        "b": Typed([1, 2], ValueType.INT8),
        "c": np.float64(0.1),
        "d": np.arange(3, dtype=np.int64),
        "e": Typed(b"\xff\x00", ValueType.STRING),
        "f": Typed([], ValueType.STRING),
    }
    path = write_gguf(tmp_path / "a.gguf", metadata, tensors, alignment=64)
    reference = Reference(path)
    assert reference.alignment == 64
    for tensor in reference.tensors:
        assert tensor.data_offset % 64 == 0
        if tensor.name == "q":
            np.testing.assert_array_equal(tensor.data, blocks)
        else:
            np.testing.assert_array_equal(tensor.data, arrays[tensor.name])
    with GGUFReader(path) as reader:
        types = {key: reader.metadata.field(key) for key in metadata}
        assert types["a"] is not None
        assert types["a"].type == ValueType.UINT16
        assert types["b"] is not None
        assert types["b"].item_type == ValueType.INT8
        assert reader.metadata["c"] == 0.1
        assert reader.metadata.raw("e") == [b"\xff\x00"]
        assert reader.metadata["f"] == []


def test_copy_is_the_same_model(tmp_path: Path) -> None:
    """A file copied entry by entry and tensor by tensor is the same model, byte for byte after the header."""
    make_tiny_llama(tmp_path / "a.gguf")
    with GGUFReader(tmp_path / "a.gguf") as reader:
        tensors = {name: copied_tensor(reader, name) for name in reader.tensors}
        write_gguf(tmp_path / "b.gguf", copied_metadata(reader), tensors)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert check(tmp_path / "b.gguf").architecture == "llama"


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"a": []}, {}, "no GGUF type"),
        ({"a": None}, {}, "no GGUF type"),
        ({"a": [1, "b"]}, {}, "no GGUF type"),
        ({"a": 2**64}, {}, "cannot be a"),
        ({"a": Typed(300, ValueType.UINT8)}, {}, "cannot be a uint8"),
        ({"a": Typed("x", ValueType.INT32)}, {}, "cannot be a int32"),
        ({"": 1}, {}, "key"),
        ({}, {"x" * 64: np.zeros(1)}, "63 bytes"),
        ({}, {"x": np.zeros((1, 1, 1, 1, 1))}, "1 to 4 sizes"),
        ({}, {"x": np.zeros((0, 2))}, "above 0"),
        ({}, {"x": np.zeros(2, np.complex64)}, "no type for it"),
        ({}, {"x": Encoded(GGMLType.Q4_0, (31,), b"")}, "multiple of 32"),
        ({}, {"x": Encoded(GGMLType.Q4_0, (32,), bytes(17))}, "has 18 bytes, 17 were given"),
        ({}, {"x": [1, 2]}, "numpy array"),
    ],
)
def test_refused(tmp_path: Path, metadata: dict[str, object], tensors: dict[str, object], message: str) -> None:
    """What GGUF cannot hold raises, and neither harms an older file nor leaves a new one."""
    target = tmp_path / "a.gguf"
    target.write_bytes(b"old")
    with pytest.raises(InvalidRequest, match=message):
        write_gguf(target, metadata, tensors)  # type: ignore[arg-type]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.gguf", b"old")]
