"""NF4, the type that fits a memory target, and tensors written as GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi.conversion.tensors import GGUFConverter, convert_to_gguf, save_gguf
from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.errors import InvalidRequest, LlcudaError, ModelNotFound
from llcuda_ffi.gguf import GGUFReader
from llcuda_ffi.gguf.writer import copied_metadata
from llcuda_ffi.quantization import DynamicQuantizer, dequantize_nf4, quantize_nf4
from llcuda_ffi.quantization.nf4 import CODE, dynamic_code

from ..support.tiny_model import make_tiny_llama

REFERENCE = Path(__file__).parents[1] / "data" / "nf4.json"


def nf4_input(n: int) -> np.ndarray:
    """Numbers that every machine makes the same: a linear congruence, spread like weights."""
    state, values = 12345, []
    for _ in range(n):
        state = (state * 1103515245 + 12345) % 2**31
        values.append((state / 2**30 - 1) ** 3)
    return np.array(values, np.float32)


@pytest.mark.parametrize("case", json.loads(REFERENCE.read_text())["cases"], ids=lambda c: f"{c['n']}-{c['blocksize']}")
def test_nf4_is_bitsandbytes(case: dict[str, object]) -> None:
    """Packed bytes, scales, quantized scales and the numbers back: bit for bit what bitsandbytes gave."""
    import hashlib

    def digest(array: np.ndarray) -> str:
        return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]

    weights = nf4_input(int(str(case["n"])))
    plain = quantize_nf4(weights, int(str(case["blocksize"])), double_quant=False)
    offset = float.fromhex(str(case["offset"]))
    double = quantize_nf4(weights, int(str(case["blocksize"])), offset=offset)
    assert double.nested_absmax is not None
    assert {
        "packed": digest(plain.packed),
        "absmax": digest(plain.absmax),
        "back": digest(dequantize_nf4(plain)),
        "double_absmax": digest(double.absmax),
        "nested": digest(double.nested_absmax),
        "double_back": digest(dequantize_nf4(double)),
    } == {key: case[key] for key in ("packed", "absmax", "back", "double_absmax", "nested", "double_back")}
    own = quantize_nf4(weights, int(str(case["blocksize"])))
    assert own.offset == pytest.approx(offset, rel=1e-6)


def test_nf4_properties() -> None:
    """Any shape comes back in its shape, near what it was; zeros stay zero; memory is a little over half a byte."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((96, 130)).astype(np.float32)
    weights[0] = 0
    packed = quantize_nf4(weights)
    back = dequantize_nf4(packed)
    assert back.shape == weights.shape
    assert np.sqrt(np.mean((back - weights) ** 2)) < 0.12
    assert packed.nbytes < weights.size * 0.53
    plain = dequantize_nf4(quantize_nf4(weights, double_quant=False))
    assert not plain[0, :128].any()
    np.testing.assert_array_equal(dequantize_nf4(quantize_nf4(CODE, double_quant=False)), CODE)
    assert len(np.unique(dynamic_code())) == 256


@pytest.mark.parametrize(
    ("values", "blocksize"), [(np.zeros(0), 64), (np.array([np.nan]), 64), (np.zeros(4), 48), (np.array(["a"]), 64)]
)
def test_nf4_refused(values: np.ndarray, blocksize: int) -> None:
    """Nothing, values that are not finite, texts, and block sizes that bitsandbytes has not."""
    with pytest.raises(InvalidRequest):
        quantize_nf4(values, blocksize)


@pytest.mark.bundle("v0.5.0")
def test_dynamic(tmp_path: Path) -> None:
    """The best type whose weights, KV cache and compute buffers fit the target; less memory, smaller type."""
    path = tmp_path / "a.gguf"
    make_tiny_llama(path, embd=256, heads=4, heads_kv=2, ff=512)

    def choose(mib: float, strategy: str = "quality", **settings: object) -> str:
        quantizer = DynamicQuantizer(mib / 1024, strategy, n_ctx=256, n_ubatch=32, overhead_gb=0, **settings)  # type: ignore[arg-type]
        choice = quantizer.choose(path)
        assert choice.total <= choice.target
        assert choice.kv_cache == 256 * 2 * 2 * (2 * 64) * 2  # cells, layers, K and V, heads × size, two bytes
        assert choice.weights == choice.plan.tensor_bytes
        return choice.ftype.name

    assert choose(100) == "F16"
    assert choose(100, "balanced") == "Q5_K_M"
    assert choose(100, "speed") == "Q4_K_M"
    sizes = [choose(mib) for mib in (4, 2.5, 2.1, 1.9)]
    assert len(set(sizes)) > 2
    with pytest.raises(InvalidRequest, match="does not fit"):
        choose(0.5)
    choice, done = DynamicQuantizer(1, "speed", n_ctx=256).quantize(path, tmp_path / "q.gguf")
    assert done.tensor_bytes == choice.weights
    with pytest.raises(InvalidRequest, match="strategy"):
        DynamicQuantizer(1, "best")


def logits(path: Path) -> np.ndarray:
    with Model.load(path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        batch = Batch(8)
        for i in range(8):
            batch.add(9 * i + 2, i, output=True)
        context.decode(batch)
        return np.stack([context.logits(i) for i in range(8)])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M"])
def test_save_gguf(tmp_path: Path, kind: str) -> None:
    """Tensors written in each type load in libllama and give the source's logits, as near as the type allows."""
    source = tmp_path / "a.gguf"
    make_tiny_llama(source, embd=256, heads=4, heads_kv=2, ff=512)
    with GGUFReader(source) as reader:
        tensors = {name: reader.dequantize(name) for name in reader.tensors}
        path = save_gguf(tensors, copied_metadata(reader), tmp_path / "b.gguf", kind)
    with GGUFReader(path) as reader:
        types = {info.ggml_type.name for info in reader.tensors.values()}
        assert reader.tensors["output_norm.weight"].ggml_type.name == "F32"
        assert (kind in types) or (kind == "Q4_K_M" and "Q4_K" in types)
    exact = {"F32": 0.99999, "F16": 0.9999, "BF16": 0.999, "Q8_0": 0.999}
    assert np.corrcoef(logits(path).ravel(), logits(source).ravel())[0, 1] > exact.get(kind, 0.95)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_save_gguf_refused(tmp_path: Path) -> None:
    """Types that are not there, and numbers that float16 cannot hold."""
    with pytest.raises(InvalidRequest, match="quant_type"):
        save_gguf({}, {}, tmp_path / "a", "Q9")
    with pytest.raises(InvalidRequest, match="65504"):
        save_gguf({"a": np.full((2, 2), 1e6)}, {}, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_converter_refused(tmp_path: Path) -> None:
    """What is no Hugging Face model, or is given without its tokenizer."""
    with pytest.raises(InvalidRequest, match="save_pretrained"):
        GGUFConverter(3)
    with pytest.raises((ModelNotFound, LlcudaError)):
        convert_to_gguf(tmp_path, tmp_path / "a.gguf")
    with pytest.raises(InvalidRequest, match="file type"):
        convert_to_gguf(tmp_path, tmp_path / "a.gguf", "Q9")
