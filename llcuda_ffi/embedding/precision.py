"""Vectors as 8-bit integers or bits, computed as sentence-transformers (6.2) does: indexes made with either agree."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..params import shown

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")

Array = npt.NDArray[Any]


def check_precision(precision: str) -> None:
    """Raise InvalidRequest where there is none of that name."""
    if precision not in PRECISIONS:
        raise InvalidRequest(f"precision must be one of {', '.join(PRECISIONS)}, not {shown(precision)}")


def quantize_embeddings(
    embeddings: Array,
    precision: Precision,
    ranges: Array | None = None,
    calibration_embeddings: Array | None = None,
) -> Array:
    """Vectors in fewer bits.

    Args:
        embeddings: (n, dim).
        precision: "int8" and "uint8" divide each number's range into 255 steps; "binary" and "ubinary" keep the signs,
            eight to a byte (binary as int8, with 128 subtracted).
        ranges: (2, dim), the least and the greatest of each number; taken from the calibration embeddings, else from
            the embeddings themselves.

    Returns:
        (n, dim) int8 or uint8, or (n, dim / 8).

    Raises:
        InvalidRequest: no such precision, a shape that does not fit, or too few vectors to take ranges from.
    """
    check_precision(precision)
    vectors = np.asarray(embeddings)
    if vectors.ndim != 2:
        raise InvalidRequest(f"embeddings must have the shape (n, dim), not {vectors.shape}")
    if precision == "float32":
        return vectors.astype(np.float32)
    if precision in ("binary", "ubinary"):
        if vectors.shape[1] % 8:
            raise InvalidRequest(f"{vectors.shape[1]} numbers do not fill bytes: choose a dim that is a multiple of 8")
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        known = vectors if calibration_embeddings is None else np.asarray(calibration_embeddings)
        if len(known) < 2 and len(vectors):
            raise InvalidRequest(
                f"{precision} takes each number's range from the vectors, and of {len(known)} there is none: encode "
                "more texts together, or give quantize_embeddings() ranges or calibration_embeddings"
            )
        ranges = np.stack([known.min(axis=0), known.max(axis=0)]) if len(known) else np.zeros((2, vectors.shape[1]))
    low, high = np.asarray(ranges, np.float32)
    steps = (high - low) / 255
    whole = np.clip(np.floor((vectors - low) / np.where(steps == 0, 1, steps)), 0, 255)
    quantized: Array = whole.astype(np.uint8) if precision == "uint8" else (whole - 128).astype(np.int8)
    return quantized
