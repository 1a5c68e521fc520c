"""Tensors computed by libggml against numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llcuda_ffi.errors import ClosedError, InvalidRequest
from llcuda_ffi.quantization.rows import ROW_TYPES
from llcuda_ffi.tensor import Device, Tensor

from ..support.child_process import run_child


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device("cpu") as opened:
        yield opened


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (2, 3, 4, 5)])
def test_round_trip(device: Device, shape: tuple[int, ...]) -> None:
    """What goes to the device comes back, in float32 and float16, also from arrays that are not contiguous."""
    array = random(*shape)
    np.testing.assert_array_equal(Tensor.from_numpy(array, device).numpy(), array)
    np.testing.assert_array_equal(Tensor.from_numpy(array.T, device).numpy(), array.T)
    half = Tensor.from_numpy(array, device, "F16")
    np.testing.assert_array_equal(half.numpy(), array.astype(np.float16))
    assert half.nbytes == 2 * array.size


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 32, 5), (64, 128, 96), (5, 33, 7)])
def test_matmul(device: Device, m: int, k: int, n: int) -> None:
    """The matrix product is numpy's within float32 rounding."""
    a, b = random(m, k), random(k, n, seed=1)
    product = Tensor.from_numpy(a, device) @ Tensor.from_numpy(b, device)
    assert product.shape == (m, n)
    np.testing.assert_allclose(product.numpy(), a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["F32", "F16", *ROW_TYPES])
def test_linear(device: Device, kind: str) -> None:
    """A product with a weight of each type is the product with the numbers that the type holds, nearly."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    inputs, weight = random(4, 256), random(48, 256, seed=2)
    there = Tensor.from_numpy(weight, device, kind)
    held = dequantize(there.numpy(), GGMLQuantizationType[kind]) if kind in ROW_TYPES else there.numpy().astype("f4")
    found = Tensor.from_numpy(inputs, device).linear(there).numpy()
    expected = inputs @ held.T
    # the inputs are quantized to 8 bits for types of blocks: an error of about a percent
    assert np.linalg.norm(found - expected) < np.linalg.norm(expected) * (0.02 if kind in ROW_TYPES else 1e-3)


def test_elementwise(device: Device) -> None:
    """Sums, differences, products, quotients, with broadcasting, and functions of each number."""
    a, b, row = random(6, 8), random(6, 8, seed=1) + 3, random(8, seed=2)
    x, y, z = (Tensor.from_numpy(v, device) for v in (a, b, row))
    for found, expected in [
        (x + y, a + b), (x - y, a - b), (x * y, a * b), (x / y, a / b), (x + z, a + row), (x * 2.5, a * 2.5),
        (3 * x, a * 3), (x.map("relu"), np.maximum(a, 0)), (x.map("silu"), a / (1 + np.exp(-a))),
        (x.map("tanh"), np.tanh(a)), (x.map("sigmoid"), 1 / (1 + np.exp(-a))), (x.map("exp"), np.exp(a)),
        (y.map("log"), np.log(np.abs(b))) if (b > 0).all() else (x.map("abs"), np.abs(a)), (x.map("neg"), -a),
        (x.map("sqr"), a * a), (x.sum(), a.sum(1, keepdims=True)),
        (x.rms_norm(), a / np.sqrt((a * a).mean(1, keepdims=True) + 1e-5)),
    ]:  # fmt: skip
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=1e-3)
    gelu = x.map("gelu").numpy()
    np.testing.assert_allclose(gelu, 0.5 * a * (1 + np.tanh(0.7978845608 * (a + 0.044715 * a**3))), atol=2e-3)


def test_softmax(device: Device) -> None:
    """Rows of a softmax sum to one and are numpy's."""
    a = random(5, 100) * 8
    found = Tensor.from_numpy(a, device).softmax().numpy()
    expected = np.exp(a - a.max(1, keepdims=True))
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_refused(device: Device) -> None:
    """What would abort libggml is an exception."""
    a = Tensor.from_numpy(random(3, 4), device)
    b = Tensor.from_numpy(random(5, 6), device)
    quantized = Tensor.from_numpy(random(4, 32), device, "Q8_0")
    for wrong in (
        lambda: a @ b,
        lambda: a + b,
        lambda: a.linear(b),
        lambda: a @ quantized,
        lambda: quantized.softmax(),
        lambda: a * float("nan"),
        lambda: a + 1,
        lambda: a.map("system"),
        lambda: Tensor.from_numpy(random(4, 33), device, "Q8_0"),
        lambda: Tensor.from_numpy(np.zeros((1, 1, 1, 1, 1)), device),
        lambda: Tensor.from_numpy(np.zeros(0), device),
        lambda: Tensor.from_numpy(["a"], device),
        lambda: Device("tpu"),
        lambda: Device(3),  # type: ignore[arg-type]
        Tensor,
    ):
        with pytest.raises(InvalidRequest):
            wrong()
    with Device("cpu") as other, pytest.raises(InvalidRequest, match="one Device"):
        a + Tensor.from_numpy(random(3, 4), other)


def test_lifetime() -> None:
    """Closing a device closes its tensors; results outlive their operands."""
    device = Device("cpu")
    assert "CPU" in Device.names()
    a = Tensor.from_numpy(random(2, 2), device)
    b = a + a
    a.close()
    np.testing.assert_allclose(b.numpy(), 2 * random(2, 2))
    with pytest.raises(ClosedError):
        a + b
    device.close()
    assert b.closed
    with pytest.raises(ClosedError):
        b.numpy()


def test_many() -> None:
    """Hundreds of operations leave no memory behind."""
    from pathlib import Path

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with Device("cpu") as device:
        weight = Tensor.from_numpy(random(64, 64), device)
        x = Tensor.from_numpy(random(16, 64), device)
        for i in range(250):
            x = x.linear(weight).softmax()
            if i == 50:
                before = resident()
        assert resident() - before < 8 << 20


@pytest.mark.gpu
def test_types_that_a_gpu_lacks() -> None:
    """Each type of weights is computed on a GPU, or refused: what libggml lacks there would end the process."""
    out = run_child(
        """
        import numpy as np
        from llcuda_ffi.errors import UnsupportedByBundle
        from llcuda_ffi.quantization.rows import ROW_TYPES
        from llcuda_ffi.tensor import Device, Tensor
        device = Device("cuda")
        inputs = Tensor.from_numpy(np.ones((4, 512), np.float32), device)
        for kind in ROW_TYPES:
            weight = Tensor.from_numpy(np.ones((8, 512), np.float32), device, kind)
            try:
                inputs.linear(weight)
            except UnsupportedByBundle as error:
                assert kind in str(error)
        print("done")
        """
    )
    assert out.strip() == "done"
