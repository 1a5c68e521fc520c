"""Importance matrices as llama-imatrix writes them (GGUF): how much each column of a matrix matters."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidModelFile, InvalidRequest
from ..gguf import GGUFReader

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Tensor name → mean of the squared inputs, float32: one for each column (and expert).

    Raises:
        ModelNotFound: no such file.
        InvalidModelFile: no GGUF, or no importance matrix.
    """
    found: dict[str, npt.NDArray[np.float32]] = {}
    with GGUFReader(path) as reader:
        for name in reader.tensors:
            if not name.endswith(_SUMS):
                continue
            base = name.removesuffix(_SUMS)
            if base + _COUNTS not in reader.tensors:
                raise InvalidModelFile(f"{path}: {name} has no {_COUNTS}")
            sums = reader.get_tensor_data(name).astype(np.float32)
            sums = sums.reshape(-1, sums.shape[-1])
            counts = reader.get_tensor_data(base + _COUNTS).astype(np.float32).reshape(-1, 1)
            if len(counts) != len(sums):
                raise InvalidModelFile(f"{path}: {name} has {len(sums)} matrices, its counts are {len(counts)}")
            # an expert that never ran gives no information: all its columns count the same
            means = np.where(counts > 0, sums / np.where(counts > 0, counts, 1), 1)
            found[base] = means.astype(np.float32).ravel()
    if not found:
        raise InvalidModelFile(f"{path} is no importance matrix in GGUF: llama-imatrix writes one")
    return found


@contextmanager
def imatrix_file(imatrix: str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | None) -> Iterator[str | None]:
    """An importance matrix as a file that the process of quantize_process.py reads; None when there is none."""
    if imatrix is None:
        yield None
        return
    values = imatrix if isinstance(imatrix, Mapping) else read_imatrix(imatrix)
    arrays = {name: np.ascontiguousarray(value, np.float32).ravel() for name, value in values.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InvalidRequest(f"the importance matrix holds values for {name!r} that are not finite")
    with tempfile.TemporaryDirectory(prefix="llcuda-ffi-") as folder:
        names = list(arrays)
        file: Any = {"names": np.array(names), **{f"v{i}": arrays[name] for i, name in enumerate(names)}}
        np.savez(Path(folder) / "imatrix.npz", **file)
        yield str(Path(folder) / "imatrix.npz")
