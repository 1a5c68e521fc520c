"""Quantizing files and rows with the real library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi.core.context import Batch, Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.enums import FType
from llcuda_ffi.errors import Cancelled, InvalidModelFile, InvalidRequest, ModelError, ModelNotFound
from llcuda_ffi.gguf import GGMLType, GGUFReader
from llcuda_ffi.gguf.writer import write_gguf
from llcuda_ffi.quantization.files import plan_quantize, quantize
from llcuda_ffi.quantization.imatrix import read_imatrix
from llcuda_ffi.quantization.rows import ROW_TYPES, quantize_rows

from ..support.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose rows fit the K types."""
    path = tmp_path_factory.mktemp("quantize") / "tiny.gguf"
    make_tiny_llama(path, embd=256, heads=4, heads_kv=2, ff=512)
    return path


def logits(path: Path) -> np.ndarray:
    with Model.load(path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        batch = Batch(16)
        for i in range(16):
            batch.add(5 * i + 1, i, output=True)
        context.decode(batch)
        return np.stack([context.logits(i) for i in range(16)])


@pytest.mark.bundle("v0.5.0")
@pytest.mark.parametrize("ftype", ["Q4_K_M", "Q8_0", "F16", "IQ4_XS"])
def test_file(source: Path, tmp_path: Path, ftype: str) -> None:
    """The new file loads, says its type, gives nearly the same logits, and is as large as the dry run said."""
    plan = plan_quantize(source, ftype)
    shares: list[float] = []
    done = quantize(source, tmp_path / "q.gguf", ftype, progress=shares.append)
    assert done.ftype == FType[ftype]
    assert done.tensor_bytes == plan.tensor_bytes
    assert done.types == plan.types
    assert done.tensor_bytes < done.source_bytes
    assert done.file_bytes == done.path.stat().st_size
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 10
    with GGUFReader(done.path) as reader:
        assert sum(info.nbytes for info in reader.tensors.values()) == done.tensor_bytes
        assert {name: info.ggml_type for name, info in reader.tensors.items()} == done.types
        assert reader.metadata["general.file_type"] == FType[ftype]
    expected, got = logits(source), logits(done.path)
    assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > (0.999 if ftype in ("F16", "Q8_0") else 0.94)
    assert list(tmp_path.iterdir()) == [done.path]


@pytest.mark.bundle("v0.5.0")
@pytest.mark.parametrize("ftype", [f for f in FType if f.name not in ("GUESSED", "ALL_F32", "NVFP4")])
def test_every_type_can_be_planned(source: Path, ftype: FType) -> None:
    """Every file type has a dry run, and says when it needs an importance matrix."""
    plan = plan_quantize(source, ftype)
    assert 0 < plan.tensor_bytes < plan.source_bytes
    assert 1 < plan.bits_per_weight < 17
    if ftype.name.startswith(("IQ1", "IQ2")):
        assert plan.needs_imatrix
    elif not ftype.name.startswith("IQ3") and ftype.name != "Q2_K_S":
        assert not plan.needs_imatrix


@pytest.mark.bundle("v0.5.0")
def test_type_that_libllama_does_not_write(source: Path) -> None:
    """A file type that has no writer is refused with libllama's words."""
    with pytest.raises(ModelError, match="invalid output file type"):
        plan_quantize(source, "NVFP4")


@pytest.mark.bundle("v0.5.0")
def test_overrides(source: Path, tmp_path: Path) -> None:
    """Types of single tensors, of the embeddings, and metadata can be chosen; layers can be left out."""
    done = quantize(
        source,
        tmp_path / "q.gguf",
        "Q4_K_M",
        tensor_types={r"ffn_down\.weight": "Q8_0"},
        embedding_type="Q6_K",
        kv_overrides={"general.name": "changed"},
        prune_layers=[1],
    )
    assert done.types["blk.0.ffn_down.weight"] == GGMLType.Q8_0
    assert done.types["token_embd.weight"] == GGMLType.Q6_K
    assert not any(name.startswith("blk.1.") for name in done.types)
    with Model.load(done.path) as model:
        assert model.metadata["general.name"] == "changed"
        assert model.n_layer == 1


@pytest.mark.bundle("v0.5.0")
def test_imatrix(source: Path, tmp_path: Path) -> None:
    """A type that needs an importance matrix is refused without, and works with one read from a GGUF file."""
    with pytest.raises(ModelError, match="imatrix"):
        quantize(source, tmp_path / "q.gguf", "IQ2_XS")
    tensors = {}
    rng = np.random.default_rng(0)
    with GGUFReader(source) as reader:
        for name, info in reader.tensors.items():
            if len(info.shape) == 2:
                tensors[name + ".in_sum2"] = rng.random((1, info.ne[0]), np.float32) * 8
                tensors[name + ".counts"] = np.array([[8]], np.float32)
    matrix = write_gguf(tmp_path / "imatrix.gguf", {"general.type": "imatrix"}, tensors)
    assert all(v.min() >= 0 and v.max() <= 1 for v in read_imatrix(matrix).values())
    done = quantize(source, tmp_path / "q.gguf", "IQ2_XS", imatrix=matrix)
    assert GGMLType.IQ2_XS in done.types.values()
    with pytest.raises(InvalidModelFile, match="no importance matrix"):
        quantize(source, tmp_path / "q.gguf", "IQ2_XS", imatrix=source)


def test_stop(source: Path, tmp_path: Path) -> None:
    """Returning False, or raising, stops the work; nothing is left in the folder."""
    target = tmp_path / "q.gguf"
    with pytest.raises(Cancelled, match="stopped"):
        quantize(source, target, progress=lambda share: share < 0.2)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, target, progress=_interrupt)
    assert not list(tmp_path.iterdir())


def _interrupt(_share: float) -> None:
    raise KeyboardInterrupt


def test_refusals(source: Path, tmp_path: Path) -> None:
    """What cannot work raises, says why, and leaves what was there."""
    target = tmp_path / "q.gguf"
    with pytest.raises(ModelNotFound):
        quantize(tmp_path / "none.gguf", target)
    (tmp_path / "bad.gguf").write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(InvalidModelFile):
        quantize(tmp_path / "bad.gguf", target)
    with pytest.raises(InvalidRequest, match="source itself"):
        quantize(source, source)
    with pytest.raises(InvalidRequest, match="folder that exists"):
        quantize(source, tmp_path / "none" / "q.gguf")
    with pytest.raises(InvalidRequest, match="ftype must be one of"):
        quantize(source, target, "Q4_K_XXL")
    with pytest.raises(InvalidRequest, match="unknown option 'treads'"):
        quantize(source, target, treads=2)
    with pytest.raises(InvalidRequest, match="regular expression"):
        quantize(source, target, tensor_types={"(": "Q8_0"})
    target.write_bytes(b"old")
    q4 = quantize(source, tmp_path / "q4.gguf", "Q4_0").path
    with pytest.raises(ModelError, match="requantizing"):
        quantize(q4, target, "Q5_0")
    assert target.read_bytes() == b"old"
    assert quantize(q4, target, "Q5_0", allow_requantize=True).tensor_bytes > 0


def test_not_finite_is_an_exception(tmp_path: Path) -> None:
    """A model with NaN weights ends in an exception, whatever libggml does with it."""
    from ..support.tiny_model import tiny_llama

    file = tiny_llama(embd=256, ff=256)
    ne, kind, _ = file.tensors["blk.0.ffn_up.weight"]
    file.tensors["blk.0.ffn_up.weight"] = (ne, kind, np.full(ne[0] * ne[1], np.nan, np.float32).tobytes())
    file.write(tmp_path / "nan.gguf")
    for ftype in ("IQ4_XS", "IQ3_S", "Q4_K_M"):
        with pytest.raises(ModelError):
            quantize(tmp_path / "nan.gguf", tmp_path / "q.gguf", ftype)


@pytest.mark.parametrize("name", ROW_TYPES)
def test_rows(name: str) -> None:
    """Rows of every type come back close to what they were."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.random.default_rng(1).standard_normal((3, 2, 512)).astype(np.float32)
    raw = quantize_rows(rows, name)
    assert raw.shape[:-1] == (3, 2)
    back = dequantize(raw, GGMLQuantizationType[name])
    error = np.sqrt(np.mean((back - rows) ** 2))
    assert error < (0.9 if name.startswith("TQ") else 0.4 if name.startswith("Q2") else 0.25)


def test_rows_refused() -> None:
    """Types, shapes and values that libggml would abort on."""
    with pytest.raises(InvalidRequest, match="IQ2_XXS"):
        quantize_rows(np.zeros((1, 256)), "IQ2_XXS")
    with pytest.raises(InvalidRequest, match="multiple of 256"):
        quantize_rows(np.zeros((1, 32)), "Q4_K")
    with pytest.raises(InvalidRequest, match="not finite"):
        quantize_rows(np.full((1, 32), np.nan), "Q4_0")
