"""GGUFReader: what it reads is what was written, in either byte order, and views cost no copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from llcuda_ffi.cli.gguf import command
from llcuda_ffi.errors import ClosedError, InvalidModelFile, ModelNotFound, UnsupportedModel
from llcuda_ffi.gguf import GGMLType, GGUFReader
from llcuda_ffi.gguf.types import BLOCKS

from ..support.tiny_model import Q8_0, TinyFile, Typed, make_tiny_llama, tiny_llama

VALUES: dict[str, tuple[Any, Any]] = {
    "a.u8": (Typed("u8", 255), 255),
    "a.i8": (Typed("i8", -128), -128),
    "a.u16": (Typed("u16", 65535), 65535),
    "a.i16": (Typed("i16", -2), -2),
    "a.u32": (Typed("u32", 4294967295), 4294967295),
    "a.i32": (Typed("i32", -5), -5),
    "a.f32": (Typed("f32", 0.5), 0.5),
    "a.true": (Typed("bool", True), True),
    "a.false": (Typed("bool", False), False),
    "a.str": (Typed("str", "héllo\0x"), "héllo\0x"),
    "a.bytes": (Typed("str", b"\xff!"), "\udcff!"),
    "a.u64": (Typed("u64", 1 << 63), 1 << 63),
    "a.i64": (Typed("i64", -(1 << 62)), -(1 << 62)),
    "a.f64": (Typed("f64", 1e300), 1e300),
    "b.i32": (Typed("array", [1, -2, 3], "i32"), [1, -2, 3]),
    "b.u64": (Typed("array", [1 << 40], "u64"), [1 << 40]),
    "b.f64": (Typed("array", [0.25, 2.0], "f64"), [0.25, 2.0]),
    "b.bool": (Typed("array", [True, False], "bool"), [True, False]),
    "b.str": (Typed("array", ["", "é", "x" * 300, "end"], "str"), ["", "é", "x" * 300, "end"]),
    "b.empty": (Typed("array", [], "str"), []),
    "b.none": (Typed("array", [], "f32"), []),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type_in_both_byte_orders(tmp_path: Path, order: str, version: int) -> None:
    """Every metadata type comes back as the Python value that was written."""
    path = tmp_path / "values.gguf"
    numbers = np.arange(6, dtype=order + "f4")
    tensors = {"t": ((3, 2), 0, numbers.tobytes())}
    TinyFile({k: v for k, (v, _) in VALUES.items()}, tensors, version=version, order=order).write(path)
    with GGUFReader(path) as reader:
        assert reader.version == version
        assert reader.byte_order == ("little" if order == "<" else "big")
        assert list(reader.metadata) == list(VALUES)
        for key, (_, wanted) in VALUES.items():
            found = reader.metadata[key]
            assert (found.tolist() if isinstance(found, np.ndarray) else found) == wanted, key
        assert reader.get_tensor_data("t").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert reader.get_metadata_value("missing", 7) == 7


def test_reads_what_the_gguf_package_reads(tmp_path: Path) -> None:
    """Metadata and tensors agree with the reference reader."""
    path = tmp_path / "tiny.gguf"
    make_tiny_llama(path, kind=Q8_0)
    theirs = gguf.GGUFReader(path)
    with GGUFReader(path) as ours:
        for key in ours.metadata:
            value, wanted = ours.metadata[key], theirs.fields[key].contents()
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == wanted, key
        assert ours.list_tensors() == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            info = ours.tensors[tensor.name]
            assert (info.numel, info.nbytes, info.ggml_type) == (
                tensor.n_elements,
                tensor.n_bytes,
                tensor.tensor_type,
            )
            assert list(info.shape) == tensor.shape.tolist()
            assert ours.data_offset + info.offset == tensor.data_offset
            assert np.array_equal(ours.get_tensor_data(tensor.name), tensor.data)
            assert np.array_equal(ours.dequantize(tensor.name), gguf.dequantize(tensor.data, tensor.tensor_type))


def test_block_sizes_agree_with_the_gguf_package() -> None:
    """Every type's block has the size that the reference says (its Q8_1 counts two floats where ggml has
    halves)."""
    for kind, (weights, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":
            assert BLOCKS[GGMLType(int(kind))] == (weights, size), kind
    assert BLOCKS[GGMLType.Q8_1] == (32, 36)
    assert set(BLOCKS) == set(GGMLType)


def test_views_are_zero_copy_and_outlive_the_reader(tmp_path: Path) -> None:
    """A tensor is a read-only view of the mapping, and stays valid after close."""
    path = tmp_path / "tiny.gguf"
    make_tiny_llama(path)
    reader = GGUFReader(path)
    view, again = reader.get_tensor_data("token_embd.weight"), reader.get_tensor_data("token_embd.weight")
    assert np.shares_memory(view, again)
    assert not view.flags.writeable
    copy = view.copy()
    reader.close()
    reader.close()
    assert np.array_equal(view, copy)
    with pytest.raises(ClosedError):
        reader.get_tensor_data("token_embd.weight")


def test_bf16_is_widened(tmp_path: Path) -> None:
    """BF16 is the upper half of a float32."""
    path = tmp_path / "bf16.gguf"
    TinyFile({}, {"t": ((2,), 30, np.array([0x3F80, 0xC000], np.uint16).tobytes())}).write(path)
    with GGUFReader(path) as reader:
        assert reader.dequantize("t").tolist() == [1.0, -2.0]
        assert reader.get_tensor_data("t").dtype == np.uint16


def test_a_large_vocabulary_opens_at_once(tmp_path: Path) -> None:
    """262,144 tokens and as many merges, scores and types: opening reads none of them into Python objects."""
    path = tmp_path / "large.gguf"
    tokens = [f"token {i}" for i in range(262_144)]
    tokens[1000] = "x" * 1000
    file = tiny_llama()
    file.metadata.update({"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": tokens})
    file.metadata.update({"tokenizer.ggml.scores": [0.0] * len(tokens), "tokenizer.ggml.token_type": [1] * len(tokens)})
    file.write(path)
    with GGUFReader(path) as reader:
        assert reader.metadata["general.architecture"] == "llama"
        assert set(reader.metadata._decoded) == {"general.architecture"}  # only what was asked for
        assert reader.metadata["tokenizer.ggml.tokens"] == tokens


@pytest.mark.parametrize("cut", [0, 3, 4, 8, 23, 24, 40, 100, 5000, 9000, -1])
def test_a_cut_file_is_refused(tmp_path: Path, cut: int) -> None:
    """A file that ends too early is an InvalidModelFile wherever it ends."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_llama().bytes()[:cut])
    with pytest.raises(InvalidModelFile, match=r"cut short|not a GGUF|more than"):
        GGUFReader(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    """Missing files and folders are ModelNotFound, other formats InvalidModelFile, old versions
    UnsupportedModel."""
    with pytest.raises(ModelNotFound):
        GGUFReader(tmp_path / "missing.gguf")
    with pytest.raises(ModelNotFound):
        GGUFReader(tmp_path)
    (tmp_path / "zip").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(InvalidModelFile, match="not a GGUF"):
        GGUFReader(tmp_path / "zip")
    TinyFile({}, {}, version=1).write(tmp_path / "v1")
    with pytest.raises(UnsupportedModel, match="version 1"):
        GGUFReader(tmp_path / "v1")


def test_splits_are_named(tmp_path: Path) -> None:
    """split.no and split.count are read; nonsense there is no crash."""
    make_tiny_llama(tmp_path / "a", {"split.no": Typed("u16", 1), "split.count": Typed("u16", 3)})
    make_tiny_llama(tmp_path / "b", {"split.no": Typed("f32", float("nan"))})
    with GGUFReader(tmp_path / "a") as reader:
        assert reader.split == (1, 3)
    with GGUFReader(tmp_path / "b") as reader:
        assert reader.split == (0, 1)


def test_command_line(tmp_path: Path) -> None:
    """`gguf info` prints every key, in JSON too; nothing in a file reaches the terminal as a control code."""
    path = tmp_path / "tiny.gguf"
    evil = {"key\x1b[31m": "value\x1b[31m\udcff", "tokenizer.nan": [float("nan")]}
    make_tiny_llama(path, evil)
    plain = CliRunner().invoke(command, ["info", str(path), "--tensors"], catch_exceptions=False)
    assert plain.exit_code == 0
    assert "token_embd.weight" in plain.output
    assert "\x1b" not in plain.output
    found = CliRunner().invoke(command, ["info", "--json", "--tensors", str(path)], catch_exceptions=False)
    facts = json.loads(found.output)
    assert facts["metadata"]["llama.block_count"] == 2
    assert facts["tensors"][0]["name"] == "token_embd.weight"
    checked = CliRunner().invoke(command, ["check", "--json", str(path)], catch_exceptions=False)
    assert json.loads(checked.output)["n_vocab"] == 379
