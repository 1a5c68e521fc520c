"""Tensors in the memory of a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendFailure, InvalidRequest, UnsupportedByBundle
from ..gguf.types import BLOCKS, GGMLType
from ..native.handle import Handle
from ..native.log import listen
from ..params import member, number
from ..quantization.rows import quantize_rows
from .device import Device

Floats = npt.NDArray[np.float32]

_MAX_DIMS = 4
_UNARY = ("relu", "gelu", "silu", "tanh", "sigmoid", "exp", "log", "sqrt", "abs", "neg", "sqr")


class Tensor(Handle):
    """Numbers on a device, in numpy's order of dimensions. What an operation gives is a new float32 tensor.

    Attributes:
        device: where it is.
        shape: its sizes.
        type: F32, F16, or a type of blocks.
    """

    device: Device
    shape: tuple[int, ...]
    type: GGMLType

    def __init__(self) -> None:
        raise InvalidRequest("a Tensor is made by Tensor.from_numpy(array, device)")

    @classmethod
    def from_numpy(cls, array: npt.ArrayLike, device: Device, type: GGMLType | str = GGMLType.F32) -> Tensor:
        """Copy an array to a device.

        Args:
            array: numbers of one to four dimensions.
            type: F32, F16, or a type of blocks (Q8_0, Q4_K, …: core.quantize_rows.ROW_TYPES), for matrices to multiply
                with.

        Raises:
            InvalidRequest: another type, shape, or values that the type cannot hold.
            BackendFailure: the device has no memory for it.
        """
        kind = member("type", type, GGMLType)
        values: np.ndarray = np.asarray(array)
        if values.dtype.kind not in "fiub" or not 1 <= values.ndim <= _MAX_DIMS or not values.size:
            raise InvalidRequest(f"a tensor has numbers in 1 to 4 dimensions, not {values.dtype} of {values.shape}")
        if kind == GGMLType.F32:
            raw: np.ndarray = np.ascontiguousarray(values, np.float32)
        elif kind == GGMLType.F16:
            with np.errstate(over="ignore"):
                raw = np.ascontiguousarray(values, np.float16)
        else:
            raw = quantize_rows(values, kind)
        tensor = cls._empty(device, values.shape, kind)
        ffi, lib = device.library.ffi, device.library.lib
        with device.exclusive(), tensor.shared():
            lib.ggml_backend_tensor_set(tensor.pointer, ffi.from_buffer(raw), 0, raw.nbytes)
        return tensor

    @classmethod
    def _empty(cls, device: Device, shape: Sequence[int], kind: GGMLType) -> Tensor:
        """Room on the device; the description and the memory are freed together."""
        ffi, lib = device.library.ffi, device.library.lib
        with device.exclusive(), listen() as heard:
            backend = device.pointer
            context = _context(ffi, lib, 1)
            made = lib.ggml_new_tensor(context, int(kind), len(shape), list(shape[::-1]))
            buffer = lib.ggml_backend_alloc_ctx_tensors(context, backend)
        if not buffer:
            lib.ggml_free(context)
            raise BackendFailure(f"{device.name} has no room for a tensor of shape {tuple(shape)}{heard.why()}")

        def free(_tensor: Any) -> None:
            lib.ggml_backend_buffer_free(buffer)
            lib.ggml_free(context)

        tensor = cls.__new__(cls)
        tensor._own(made, free, device)
        tensor.device, tensor.shape, tensor.type = device, tuple(int(n) for n in shape), kind
        return tensor

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Tensor {self.type.name} {self.shape} on {self.device.name}{state}>"

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        weights, size = BLOCKS[self.type]
        return int(np.prod(self.shape, dtype=np.int64)) // weights * size

    def numpy(self) -> np.ndarray:
        """A copy: float32 or float16; of types of blocks the bytes, with a row's bytes as the last dimension."""
        weights, size = BLOCKS[self.type]
        if self.type in (GGMLType.F32, GGMLType.F16):
            out = np.empty(self.shape, np.float32 if self.type == GGMLType.F32 else np.float16)
        else:
            out = np.empty((*self.shape[:-1], self.shape[-1] // weights * size), np.uint8)
        ffi, lib = self.device.library.ffi, self.device.library.lib
        with self.device.exclusive(), self.shared():
            lib.ggml_backend_tensor_get(self.pointer, ffi.from_buffer(out), 0, out.nbytes)
        return out

    # --- operations ---

    def matmul(self, other: Tensor) -> Tensor:
        """The matrix product self @ other of two float32 matrices.

        Raises:
            InvalidRequest: sizes that do not fit, another type, or two devices.
        """
        if len(other.shape) != 2 or len(self.shape) != 2 or self.shape[1] != other.shape[0]:
            raise InvalidRequest(f"matrices of shapes {self.shape} and {other.shape} cannot be multiplied")
        self._need_f32(other)

        def build(lib: Any, context: Any, a: Any, b: Any) -> Any:
            # ggml multiplies rows with rows: the right matrix is transposed
            return lib.ggml_mul_mat(context, lib.ggml_cont(context, lib.ggml_transpose(context, b)), a)

        return self._compute(build, (self.shape[0], other.shape[1]), other)

    __matmul__ = matmul

    def linear(self, weight: Tensor) -> Tensor:
        """self @ weight.T: `weight` of shape (outputs, inputs) may be F16 or quantized. The product that models use.

        Raises:
            InvalidRequest: sizes that do not fit, or two devices.
        """
        if len(weight.shape) != 2 or len(self.shape) != 2 or self.shape[1] != weight.shape[1]:
            raise InvalidRequest(f"inputs of shape {self.shape} do not fit a weight of shape {weight.shape}")
        self._need_f32()
        return self._compute(
            lambda lib, context, a, w: lib.ggml_mul_mat(context, w, a), (self.shape[0], weight.shape[0]), weight
        )

    def _pairwise(self, name: str, other: Tensor) -> Tensor:
        self._need_f32(other)
        padded = (1,) * (len(self.shape) - len(other.shape)) + other.shape
        if len(padded) != len(self.shape) or any(a % b for a, b in zip(self.shape, padded, strict=True)):
            raise InvalidRequest(f"a tensor of shape {other.shape} cannot be repeated over one of {self.shape}")
        if any(b not in (1, a) for a, b in zip(self.shape, padded, strict=True)):
            raise InvalidRequest(f"shapes {self.shape} and {other.shape} do not broadcast: sizes must be equal or 1")
        return self._compute(lambda lib, context, a, b: getattr(lib, f"ggml_{name}")(context, a, b), self.shape, other)

    def __add__(self, other: Tensor) -> Tensor:
        return self._pairwise("add", other)

    def __sub__(self, other: Tensor) -> Tensor:
        return self._pairwise("sub", other)

    def __mul__(self, other: Tensor | float) -> Tensor:
        if isinstance(other, Tensor):
            return self._pairwise("mul", other)
        self._need_f32()
        factor = number("a factor", other)
        return self._compute(lambda lib, context, a: lib.ggml_scale(context, a, factor), self.shape)

    __rmul__ = __mul__

    def __truediv__(self, other: Tensor) -> Tensor:
        return self._pairwise("div", other)

    def map(self, function: str) -> Tensor:
        """A function of each number: relu, gelu, silu, tanh, sigmoid, exp, log, sqrt, abs, neg or sqr."""
        if function not in _UNARY:
            raise InvalidRequest(f"function must be one of {', '.join(_UNARY)}, not {function!r:.40}")
        self._need_f32()
        return self._compute(lambda lib, context, a: getattr(lib, f"ggml_{function}")(context, a), self.shape)

    def softmax(self) -> Tensor:
        """Softmax over the last dimension."""
        self._need_f32()
        return self._compute(lambda lib, context, a: lib.ggml_soft_max(context, a), self.shape)

    def rms_norm(self, eps: float = 1e-5) -> Tensor:
        """Each row over the root of its mean square."""
        self._need_f32()
        small = number("eps", eps, 0.0, 1.0)
        return self._compute(lambda lib, context, a: lib.ggml_rms_norm(context, a, small), self.shape)

    def sum(self) -> Tensor:
        """Sums over the last dimension, which keeps the size 1."""
        self._need_f32()
        return self._compute(lambda lib, context, a: lib.ggml_sum_rows(context, a), (*self.shape[:-1], 1))

    def _need_f32(self, *others: Tensor) -> None:
        for tensor in (self, *others):
            if not isinstance(tensor, Tensor):
                raise InvalidRequest(f"the other operand must be a Tensor, not {type(tensor).__name__}")
            if tensor.type != GGMLType.F32:
                raise InvalidRequest(
                    f"this operation takes float32 tensors, not {tensor.type.name}: only linear() takes other weights"
                )

    def _compute(self, build: Callable[..., Any], shape: tuple[int, ...], *others: Tensor) -> Tensor:
        """Compute one operation into a new tensor."""
        device = self.device
        if any(other.device is not device for other in others):
            raise InvalidRequest("both tensors must be on one Device object")
        result = Tensor._empty(device, shape, GGMLType.F32)
        ffi, lib = device.library.ffi, device.library.lib
        try:
            with ExitStack() as held:
                heard = held.enter_context(listen())
                held.enter_context(device.exclusive())
                for tensor in (self, *others, result):
                    held.enter_context(tensor.shared())
                context = _context(ffi, lib, 8)
                held.callback(lib.ggml_free, context)
                pointers = [tensor.pointer for tensor in (self, *others)]
                operation = build(lib, context, *pointers)
                if not device.supports(operation):
                    kinds = ", ".join(tensor.type.name for tensor in (self, *others))
                    raise UnsupportedByBundle(
                        f"{device.name} does not compute this operation on {kinds} with bundle "
                        f"{device.library.bundle.name}: use Device('cpu'), or another type"
                    )
                made = lib.ggml_cpy(context, operation, result.pointer)
                graph = lib.ggml_new_graph_custom(context, 16, False)
                lib.ggml_build_forward_expand(graph, made)
                buffer = lib.ggml_backend_alloc_ctx_tensors(context, device.pointer)
                if not buffer:
                    raise BackendFailure(f"{device.name} has no room for the operation{heard.why()}")
                held.callback(lib.ggml_backend_buffer_free, buffer)
                status = lib.ggml_backend_graph_compute(device.pointer, graph)
                if status:
                    raise BackendFailure(f"{device.name} could not compute (status {status}){heard.why()}")
                lib.ggml_backend_synchronize(device.pointer)
        except BaseException:
            result.close()
            raise
        return result


def _context(ffi: Any, lib: Any, n_tensors: int) -> Any:
    """A place for the descriptions of tensors and of a graph; their numbers are elsewhere."""
    size = n_tensors * lib.ggml_tensor_overhead() + lib.ggml_graph_overhead_custom(16, False) + 1024
    return lib.ggml_init(ffi.new("struct ggml_init_params *", {"mem_size": size, "no_alloc": True})[0])
