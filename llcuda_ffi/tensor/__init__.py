"""Tensors computed by libggml, on the CPU or a GPU: matmul (also with quantized matrices), elementwise, softmax.

    from llcuda_ffi.tensor import Device, Tensor

    with Device("cpu") as device:
        a, b = Tensor.from_numpy(x, device), Tensor.from_numpy(y, device)
        print((a @ b).softmax().numpy())

What it is for: a few large operations on the same kernels, types and devices that the models use (a matrix kept in
Q4_K on the GPU, say). Every operation is a graph of its own and copies nothing but its result's description; numpy is
the better choice for small arrays, and torch for everything that learns.
"""

from __future__ import annotations

from .device import Device
from .tensor import Tensor

__all__ = ["Device", "Tensor"]
