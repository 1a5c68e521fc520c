"""Reads a GGUF file through mmap: typed metadata, and tensors as numpy views without a copy."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal

import numpy as np

from ..errors import ClosedError, InvalidModelFile, InvalidRequest, MissingExtra, ModelNotFound, UnsupportedModel
from ..regular_file import open_regular
from .layout import Field, Layout, TensorInfo, parse
from .types import BLOCKS, NUMBERS, NUMPY, GGMLType, ValueType


class Metadata(Mapping[str, Any]):
    """The metadata of a file: values are decoded when they are asked for.

    Numbers come as int, float and bool, strings as str (bytes that are no UTF-8 as surrogates), arrays of
    numbers as read-only numpy views, arrays of strings as list[str].
    """

    def __init__(self, layout: Layout, buffer: memoryview) -> None:
        self._layout, self._buffer = layout, buffer
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        found = self._layout.fields[key]
        if key not in self._decoded:
            self._decoded[key] = self._decode(found)
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.fields)

    def __len__(self) -> int:
        return len(self._layout.fields)

    def __contains__(self, key: object) -> bool:
        return key in self._layout.fields

    def field(self, key: str) -> Field | None:
        """Where and of which type the entry is, without decoding it."""
        return self._layout.fields.get(key)

    def raw(self, key: str) -> list[bytes]:
        """The items of a string array, or a string alone, as bytes."""
        found, buffer = self._layout.fields[key], self._buffer
        if found.strings is None:
            return [bytes(buffer[found.offset : found.offset + found.count])]
        if not found.count:
            return []
        # one copy of the region, then cheap slices: a string's text ends where the next one's length begins
        starts = found.strings
        first, last = int(starts[0]), int(starts[-1])
        order: Literal["little", "big"] = "little" if self._layout.order == "<" else "big"
        end = last + 8 + int.from_bytes(buffer[last : last + 8], order)
        region = bytes(buffer[first:end])
        begins = (starts - first + 8).tolist()
        ends = [*(starts[1:] - first).tolist(), end - first]
        return [region[a:b] for a, b in zip(begins, ends, strict=True)]

    def _decode(self, found: Field) -> Any:
        if ValueType.STRING in (found.type, found.item_type):
            items = [item.decode("utf-8", "surrogateescape") for item in self.raw(found.key)]
            return items if found.item_type is not None else items[0]
        kind = found.type if found.item_type is None else found.item_type
        dtype = np.dtype(self._layout.order + NUMBERS[kind])
        values = np.frombuffer(self._buffer, dtype, found.count, found.offset)
        if kind == ValueType.BOOL:  # any byte but 0 is true: as numbers first
            values = np.frombuffer(self._buffer, np.uint8, found.count, found.offset) != 0
        return values if found.item_type is not None else values[0].item()


class GGUFReader:
    """A GGUF file, v2 or v3, of either byte order. Use as a context manager, or call `close`.

    Arrays handed out stay valid after `close`: they keep the mapping alive.

    Attributes:
        path: the file.
        version: of the format, 2 or 3.
        byte_order: "little" or "big".
        alignment: of tensors in the data section, in bytes.
        data_offset: where the data section begins, in bytes.

    Raises:
        ModelNotFound: no such file.
        InvalidModelFile: not a GGUF, cut short, or contradicting itself.
        UnsupportedModel: a version or a tensor type that is not known here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise InvalidRequest(f"a GGUF file is named by a path, not {type(path).__name__}")
        self.path = Path(path)
        self._map: memoryview | None = _map(self.path)
        self.layout = parse(self._map, str(self.path))
        self.metadata = Metadata(self.layout, self._map)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(self.layout.tensors)
        self.version = self.layout.version
        self.byte_order = "little" if self.layout.order == "<" else "big"
        self.alignment = self.layout.alignment
        self.data_offset = self.layout.data_offset

    def __repr__(self) -> str:
        return f"<GGUFReader {self.path.name}: {len(self.metadata)} keys, {len(self.tensors)} tensors>"

    def __enter__(self) -> GGUFReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the mapping go. Harmless when called again; views handed out before stay valid."""
        self._map = None
        self.metadata = Metadata(Layout(self.version, self.layout.order, 0), memoryview(b""))

    @property
    def architecture(self) -> str:
        """general.architecture, or "" where it is missing."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def split(self) -> tuple[int, int]:
        """Which part this is and of how many: (split.no, split.count); (0, 1) for a model in one file."""
        number, count = self.metadata.get("split.no", 0), self.metadata.get("split.count", 1)
        if isinstance(number, int) and isinstance(count, int):
            return number, max(1, count)
        return 0, 1

    def get_metadata_value(self, key: str, default: Any = None) -> Any:
        """A metadata value, or `default`."""
        return self.metadata.get(key, default)

    def list_tensors(self) -> list[str]:
        """The tensors' names in file order."""
        return list(self.tensors)

    def get_tensor_data(self, name: str) -> np.ndarray:
        """A read-only view of a tensor, without a copy.

        Returns:
            For types that numpy has the numbers, in numpy's order of dimensions (ggml's reversed); BF16 as
            uint16; of quantized types the bytes, with a row's bytes as the last dimension.

        Raises:
            KeyError: no such tensor.
            ClosedError: after `close`.
        """
        info, mapped = self.tensors[name], self._map
        if mapped is None:  # looked at once: another thread may close the reader meanwhile
            raise ClosedError(f"the reader of {self.path} is closed")
        start = self.data_offset + info.offset
        shape = info.shape[::-1]
        code = NUMPY.get(info.ggml_type)
        if code is not None:
            dtype = np.dtype(self.layout.order + code)
            return np.frombuffer(mapped, dtype, info.numel, start).reshape(shape)
        weights, size = BLOCKS[info.ggml_type]
        rows = (*shape[:-1], shape[-1] // weights * size)
        return np.frombuffer(mapped, np.uint8, info.nbytes, start).reshape(rows)

    def dequantize(self, name: str) -> np.ndarray:
        """A tensor as float32, decoded by the `gguf` package.

        Raises:
            KeyError: no such tensor.
            LlcudaError: the package `gguf` is not installed.
            UnsupportedModel: it cannot decode the type.
        """
        data, info = self.get_tensor_data(name), self.tensors[name]
        if info.ggml_type in (GGMLType.F32, GGMLType.F16, GGMLType.F64):
            return data.astype(np.float32)
        try:
            from gguf import GGMLQuantizationType
            from gguf.quants import dequantize
        except ImportError:
            raise MissingExtra(f"tensor {name!r} is {info.ggml_type.name}: to decode it, pip install gguf") from None
        if self.byte_order != "little" and info.ggml_type != GGMLType.BF16:
            raise UnsupportedModel(f"{self.path}: quantized tensors of big-endian files cannot be decoded")
        try:
            if info.ggml_type == GGMLType.BF16:
                return (data.astype(np.uint32) << 16).view(np.float32)
            found = dequantize(data, GGMLQuantizationType(int(info.ggml_type)))
            return np.asarray(found, dtype=np.float32)
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedModel(
                f"tensor {name!r} is {info.ggml_type.name}, which the package gguf cannot decode: {error}"
            ) from error


def _map(path: Path) -> memoryview:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise InvalidModelFile(f"{path} is not a GGUF file: it has {size} bytes")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise ModelNotFound(f"there is no model file {path}") from None
    except IsADirectoryError:
        raise ModelNotFound(f"{path} is a folder: name the .gguf file in it") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidModelFile):
            raise
        raise InvalidModelFile(f"{path} could not be read: {error}") from error
