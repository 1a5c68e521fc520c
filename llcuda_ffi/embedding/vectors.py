"""Arrays of vectors: lengths, and torch's form of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import MissingExtra

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]


def as_rows(vectors: Any) -> Array:
    """float32 of an array, a tensor or a list of vectors; also of a Series that holds one in each place."""
    rows = np.asarray(vectors)
    if rows.dtype.kind == "O":
        rows = np.asarray(rows.tolist(), np.float32)
    return rows.astype(np.float32, casting="same_kind", copy=False)


def normalized(vectors: Array) -> Array:
    """Rows of (n, dim) at length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: Array = vectors / np.where(lengths == 0, 1, lengths)
    return rows


def to_tensor(vectors: Array) -> torch.Tensor:
    """A torch.Tensor over the same memory.

    Raises:
        MissingExtra: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtra("tensors need torch, which is not installed: pip install torch, or take the array") from None
    return torch.from_numpy(np.ascontiguousarray(vectors))
