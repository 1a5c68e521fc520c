"""NF4: four bits for each weight, at the quantiles of a normal distribution, with one scale for each block.

The bytes and numbers are those of bitsandbytes on a CPU, bit for bit. One number may differ in its last bit: the
mean that double quantization takes off the scales, because torch sums in an order that depends on the processor
and on the number of threads; `offset=` takes that number from elsewhere, and then all of it is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest

Floats = npt.NDArray[np.float32]

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STATISTICS_BLOCK = 256
_TINY = np.float32(1e-38)

# the quantiles, as published with QLoRA
CODE: Floats = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
_BOUNDS: Floats = (CODE[:-1] + CODE[1:]) / np.float32(2)


@dataclass(frozen=True)
class Nf4:
    """A quantized array.

    Attributes:
        packed: uint8, two weights each, the first in the high half.
        shape: of the array.
        blocksize: weights for each scale.
        absmax: the scales: float32, or with double quantization uint8 codes.
        offset, nested_absmax: of the double quantization: the scales' mean, and a scale for each 256 of them.
    """

    packed: npt.NDArray[np.uint8]
    shape: tuple[int, ...]
    blocksize: int
    absmax: npt.NDArray[np.float32] | npt.NDArray[np.uint8]
    offset: np.float32 | None = None
    nested_absmax: Floats | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of everything that must be kept."""
        nested = 4 + self.nested_absmax.nbytes if self.nested_absmax is not None else 0
        return self.packed.nbytes + self.absmax.nbytes + nested

    @property
    def scales(self) -> Floats:
        """The scale of each block, float32."""
        if self.nested_absmax is None or self.offset is None:
            return np.asarray(self.absmax, np.float32)
        values = dynamic_code()[self.absmax]
        nested = np.repeat(self.nested_absmax, STATISTICS_BLOCK)[: len(values)]
        scales: Floats = values * nested + self.offset
        return scales


def quantize_nf4(
    weight: npt.ArrayLike, blocksize: int = 64, double_quant: bool = True, *, offset: float | None = None
) -> Nf4:
    """Quantize an array.

    Args:
        weight: finite numbers (float32; float16 and others are converted).
        blocksize: weights for each scale: 32 to 4096, a power of two.
        double_quant: also quantize the scales, to 8 bits.
        offset: the mean of the scales, where it is known from elsewhere.

    Raises:
        InvalidRequest: an empty array, values that are not finite, or another block size.
    """
    values = np.asarray(weight)
    if values.dtype.kind not in "fiu" or not values.size:
        raise InvalidRequest(f"NF4 takes numbers, at least one, not {values.dtype} of shape {values.shape}")
    if blocksize not in BLOCK_SIZES:
        raise InvalidRequest(f"blocksize must be one of {', '.join(map(str, BLOCK_SIZES))}, not {blocksize!r}")
    flat = np.ascontiguousarray(values, np.float32).ravel()
    if not np.isfinite(flat).all():
        raise InvalidRequest("values that are not finite cannot be quantized")
    absmax, scaled = _scale(flat, blocksize)
    if len(scaled) % 2:
        scaled = np.append(scaled, np.float32(0))
    codes = np.searchsorted(_BOUNDS, scaled).astype(np.uint8)
    packed = np.asarray((codes[::2] << 4) | codes[1::2], np.uint8)
    if not double_quant:
        return Nf4(packed, values.shape, blocksize, absmax)
    mean = np.float32(absmax.mean(dtype=np.float64) if offset is None else offset)
    quantized, nested = _quantize_statistics(absmax - mean)
    return Nf4(packed, values.shape, blocksize, quantized, mean, nested)


def dequantize_nf4(quantized: Nf4) -> Floats:
    """The array again, float32."""
    n = int(np.prod(quantized.shape, dtype=np.int64))
    codes = np.empty(len(quantized.packed) * 2, np.uint8)
    codes[::2], codes[1::2] = quantized.packed >> 4, quantized.packed & 15
    values = CODE[codes[:n]]
    values *= np.repeat(quantized.scales, quantized.blocksize)[:n]
    result: Floats = values.reshape(quantized.shape)
    return result


def _scale(flat: Floats, blocksize: int) -> tuple[Floats, Floats]:
    """The largest magnitude of each block, and the values over it."""
    full = len(flat) - len(flat) % blocksize
    blocks = flat[:full].reshape(-1, blocksize)
    absmax = np.abs(blocks).max(1, initial=0)
    # whole blocks are multiplied by the reciprocal, the rest is divided: as the reference does
    scaled = (blocks * (np.float32(1) / np.maximum(absmax, _TINY))[:, None]).ravel()
    if full < len(flat):
        rest = flat[full:]
        largest = np.maximum(np.abs(rest).max(), _TINY)
        absmax, scaled = np.append(absmax, largest), np.append(scaled, rest / largest)
    return absmax, np.clip(scaled, -1, 1)


def _quantize_statistics(values: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Eight bits for each value, in the dynamic code, with a scale for each 256."""
    starts = np.arange(0, len(values), STATISTICS_BLOCK)
    absmax: Floats = np.maximum.reduceat(np.abs(values), starts)
    spread = np.repeat(absmax, STATISTICS_BLOCK)[: len(values)]
    scaled = np.divide(values, spread, out=np.zeros_like(values), where=spread > 0)
    place = ((scaled + np.float32(1)) * np.float32(32767.5) + np.float32(0.5)).astype(np.int64)
    codes = _nearest()[np.clip(place, 0, 65535)]
    return np.where(spread > 0, codes, 0).astype(np.uint8), absmax


@cache
def _nearest() -> npt.NDArray[np.uint8]:
    """For 65,536 places from -1 to 1 the nearest value of the dynamic code: the reference looks it up so."""
    code = dynamic_code().astype(np.float64)
    places = np.arange(65536) * (2 / 65535) - 1
    return np.searchsorted((code[:-1] + code[1:]) / 2, places).astype(np.uint8)


@cache
def dynamic_code() -> Floats:
    """The 256 values of the 8-bit dynamic data type: a sign, a decimal exponent of unary length, a fraction."""
    found = [0.0, 1.0]
    for exponent in range(7):
        n = 2**exponent + 1
        first = np.float64(np.float32(0.1))
        step = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(n - 1))
        i = np.arange(n)
        # from both ends, rounded once: how torch spaces numbers
        bounds = np.where(i < n // 2, first + step * i, 1 - step * (n - 1 - i)).astype(np.float32)
        means = (bounds[:-1] + bounds[1:]) / np.float32(2)
        means = means.astype(np.float32) * np.float32(10.0 ** (exponent - 6))
        found += [*means.tolist(), *(-means).tolist()]
    return np.sort(np.array(found, np.float32))
