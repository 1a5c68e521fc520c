"""Reads safetensors files without their package and without torch: a JSON header, then the tensors' bytes."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidModelFile, ModelNotFound
from ..regular_file import open_regular

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_MAX_HEADER = 100_000_000  # the format's own limit


class SafeTensors(Mapping[str, np.ndarray]):
    """The tensors of a file, as arrays; BF16 comes as float32, the rest as views without a copy.

    Raises:
        ModelNotFound: no such file.
        InvalidModelFile: no safetensors file, or its header contradicts it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                if size < 10:
                    raise InvalidModelFile(f"{self.path} is no safetensors file: it has {size} bytes")
                self._map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            raise ModelNotFound(f"there is no file {self.path}") from None
        except OSError as error:
            raise InvalidModelFile(f"{self.path} cannot be read: {error.strerror}") from error
        length = int.from_bytes(self._map[:8], "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise InvalidModelFile(f"{self.path} is no safetensors file, or is cut short")
        try:
            header = json.loads(bytes(self._map[8 : 8 + length]))
            self.metadata: dict[str, str] = dict(header.pop("__metadata__", {}))
            self._entries = {name: self._entry(entry, size - 8 - length) for name, entry in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidModelFile(f"{self.path}: its header is broken ({error})") from error
        self._start = 8 + length

    def _entry(self, entry: dict[str, Any], available: int) -> tuple[str, tuple[int, ...], int]:
        begin, end = (int(x) for x in entry["data_offsets"])
        shape = tuple(int(n) for n in entry["shape"])
        dtype = entry["dtype"]
        if dtype in _DTYPES and not 0 <= begin <= end <= available:
            raise ValueError("a tensor lies outside the file")
        if dtype in _DTYPES:
            wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[dtype]).itemsize
            if any(n < 0 for n in shape) or end - begin != wanted:
                raise ValueError("a tensor's size is not that of its shape")
        return dtype, shape, begin

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, begin = self._entries[name]
        if dtype not in _DTYPES:
            raise InvalidModelFile(f"{self.path}: tensor {name!r} is {dtype}, which numpy does not have")
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(self._map, _DTYPES[dtype], count, self._start + begin).reshape(shape)
        if dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write float and integer arrays as a safetensors file."""
    codes = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at, parts = 0, []
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array)
        header[name] = {
            "dtype": codes[raw.dtype], "shape": list(raw.shape), "data_offsets": [at, at + raw.nbytes],
        }  # fmt: skip
        parts.append(raw.tobytes())
        at += raw.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    target = Path(path)
    target.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts))
    return target
