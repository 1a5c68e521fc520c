"""Rows of numbers as quantized blocks (ggml_quantize_chunk)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..enums import GGMLType
from ..errors import InvalidRequest, ModelError
from ..gguf.types import BLOCKS
from ..native.load import load
from ..params import member

# what ggml_quantize_chunk may be given in this process: the searching IQ types abort on values off their grids
ROW_TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0",
    "TQ2_0", "MXFP4",
)  # fmt: skip


def quantize_rows(values: npt.ArrayLike, type: GGMLType | str) -> npt.NDArray[np.uint8]:
    """Rows of numbers as quantized blocks, in libggml's own encoding (ggml_quantize_chunk).

    Args:
        values: finite numbers, the last dimension a multiple of the type's block.

    Returns:
        uint8, the last dimension being a row's bytes.

    Raises:
        InvalidRequest: another type (those go through `quantize`), shape, or values that are not finite.
    """
    kind = member("type", type, GGMLType)
    if kind.name not in ROW_TYPES:
        raise InvalidRequest(
            f"rows can be quantized to {', '.join(ROW_TYPES)}, not to {kind.name}: write F16 and use quantize()"
        )
    array = np.ascontiguousarray(values, np.float32)
    weights, size = BLOCKS[kind]
    if not array.ndim or not array.size or array.shape[-1] % weights:
        raise InvalidRequest(
            f"a row of {kind.name} is a multiple of {weights} numbers: this has the shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise InvalidRequest("values that are not finite cannot be quantized")
    library = load()
    ffi, columns = library.ffi, array.shape[-1]
    rows = array.size // columns
    out = np.empty((*array.shape[:-1], columns // weights * size), np.uint8)
    got = library.lib.ggml_quantize_chunk(
        int(kind), ffi.from_buffer("float[]", array), ffi.from_buffer(out), 0, rows, columns, ffi.NULL
    )
    if got != out.nbytes:
        raise ModelError(f"libggml wrote {got} bytes of {kind.name} instead of {out.nbytes}")
    return out
