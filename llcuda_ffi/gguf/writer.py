"""Writes GGUF files: metadata, tensors already encoded, aligned; the file appears whole or not at all.

    write_gguf("a.gguf", {"general.architecture": "llama"}, {"output.weight": array})

Metadata types follow the Python types (int → uint32 or what holds it, float → float32, str, bool, lists of one of
those, numpy arrays and scalars by their dtype); `Typed` names another one. Tensors are numpy arrays in numpy's order
of dimensions, or `Encoded` for quantized bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidModelFile, InvalidRequest
from ..regular_file import written_whole
from .reader import GGUFReader
from .types import BLOCKS, NUMBERS, NUMPY, GGMLType, ValueType

DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME = 63  # ggml keeps names in 64 bytes with a final NUL

_CODES: dict[str, GGMLType] = {code: kind for kind, code in NUMPY.items() if kind != GGMLType.BF16}
_VALUES: dict[str, ValueType] = {np.dtype(code).str[1:]: ValueType(kind) for kind, code in NUMBERS.items()}


@dataclass(frozen=True)
class Typed:
    """A metadata value whose type is named, e.g. Typed(3, ValueType.UINT16).

    Attributes:
        value: a number, a bool, a str or bytes; or a sequence of them.
        type: of the value; of its items where it is a sequence.
    """

    value: Any
    type: ValueType


@dataclass(frozen=True)
class Encoded:
    """A tensor as it will stand in the file.

    Attributes:
        type: its ggml type.
        shape: its sizes in numpy's order (ggml's reversed).
        data: the bytes, or a function that gives them when they are written (large models need not be in memory).
    """

    type: GGMLType
    shape: tuple[int, ...]
    data: np.ndarray | bytes | Callable[[], np.ndarray | bytes]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        weights, size = BLOCKS[self.type]
        return int(np.prod(self.shape, dtype=np.int64)) // weights * size


Tensor = np.ndarray | Encoded


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
) -> Path:
    """Write a GGUF file of version 3: into a temporary file beside `path`, then renamed.

    Raises:
        InvalidRequest: a key, a value, a tensor's name, type or shape that GGUF cannot hold.
        OSError: it could not be written; nothing is left behind.
    """
    target = Path(path)
    if alignment < 8 or alignment & (alignment - 1):
        raise InvalidRequest(f"alignment must be a power of two of at least 8, not {alignment}")
    entries = {key: value for key, value in metadata.items() if key != "general.alignment"}
    if alignment != DEFAULT_ALIGNMENT:
        entries["general.alignment"] = Typed(alignment, ValueType.UINT32)
    encoded = {name: _tensor(name, tensor) for name, tensor in tensors.items()}

    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(encoded), len(entries))]
    head += [_text(key) + _value(key, value) for key, value in entries.items()]
    offset = 0
    for name, tensor in encoded.items():
        ne = tensor.shape[::-1]
        head.append(_text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, tensor.type, offset))
        offset += -(-tensor.nbytes // alignment) * alignment

    with written_whole(target) as fresh, open(fresh, "wb") as file:
        top = b"".join(head)
        file.write(top + bytes(-len(top) % alignment))
        for name, tensor in encoded.items():
            data = tensor.data() if callable(tensor.data) else tensor.data
            raw = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
            if len(raw) != tensor.nbytes:
                raise InvalidRequest(
                    f"tensor {name!r}: {tensor.type.name} of shape {tensor.shape} has {tensor.nbytes} bytes, "
                    f"{len(raw)} were given"
                )
            file.write(raw)
            file.write(bytes(-len(raw) % alignment))
    return target


def copied_metadata(reader: GGUFReader) -> dict[str, Typed]:
    """Every entry of a file with its type, ready to be written again (without those of a split and the alignment).

    Raises:
        InvalidModelFile: an array of arrays, which no model uses.
    """
    found: dict[str, Typed] = {}
    for key in reader.metadata:
        if key.startswith("split.") or key == "general.alignment":
            continue
        entry = reader.metadata.field(key)
        assert entry is not None
        kind = entry.type if entry.item_type is None else entry.item_type
        if kind == ValueType.ARRAY:
            raise InvalidModelFile(f"{reader.path}: {key} is an array of arrays, which cannot be written again")
        found[key] = Typed(reader.metadata[key], ValueType(kind))
    return found


def copied_tensor(reader: GGUFReader, name: str) -> Encoded:
    """A tensor of a file, to be written as it is, read when it is written."""
    info = reader.tensors[name]
    return Encoded(info.ggml_type, tuple(info.shape[::-1]), lambda: reader.get_tensor_data(name))


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Finite numbers as bfloat16, in uint16: rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded: np.ndarray = (
        (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    ).astype(np.uint16)
    return rounded


def _tensor(name: str, tensor: Tensor) -> Encoded:
    if not isinstance(name, str) or not name or len(name.encode("utf-8", "replace")) > MAX_NAME or "\0" in name:
        raise InvalidRequest(f"a tensor's name must have 1 to {MAX_NAME} bytes and no NUL, not {name!r:.80}")
    if isinstance(tensor, np.ndarray):
        kind = _CODES.get(tensor.dtype.str[1:])
        if kind is None:
            raise InvalidRequest(f"tensor {name!r} has the dtype {tensor.dtype}: GGUF has no type for it")
        if tensor.dtype.byteorder == ">":
            tensor = tensor.astype(tensor.dtype.newbyteorder("<"))
        tensor = Encoded(kind, tensor.shape, tensor)
    if not isinstance(tensor, Encoded):
        raise InvalidRequest(f"tensor {name!r} must be a numpy array or Encoded, not {type(tensor).__name__}")
    shape = tensor.shape
    if not 1 <= len(shape) <= MAX_DIMS or any(n < 1 for n in shape):
        raise InvalidRequest(f"tensor {name!r} has the shape {shape}: 1 to {MAX_DIMS} sizes above 0 are possible")
    weights = BLOCKS[tensor.type][0]
    if shape[-1] % weights:
        raise InvalidRequest(
            f"tensor {name!r}: a row of {shape[-1]} is not a multiple of {weights}, which {tensor.type.name} needs"
        )
    return tensor


def _text(value: str | bytes) -> bytes:
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    if not isinstance(key, str) or not key or len(key.encode("utf-8", "replace")) > 65535:
        raise InvalidRequest(f"a metadata key must be a text that is not empty, not {key!r:.80}")
    typed = value if isinstance(value, Typed) else _typed(key, value)
    try:
        if isinstance(typed.value, (list, tuple, np.ndarray)):
            return struct.pack("<I", ValueType.ARRAY) + _array(typed)
        if typed.type == ValueType.STRING:
            return struct.pack("<I", typed.type) + _text(typed.value)
        number = np.array(typed.value).astype("<" + NUMBERS[typed.type], casting="unsafe")
        if typed.type not in (ValueType.FLOAT32, ValueType.FLOAT64) and number != typed.value:
            raise ValueError("out of range")
        return struct.pack("<I", typed.type) + number.tobytes()
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError) as error:
        raise InvalidRequest(f"metadata {key!r}: {typed.value!r:.80} cannot be a {typed.type.name.lower()}") from error


def _array(typed: Typed) -> bytes:
    head = struct.pack("<IQ", typed.type, len(typed.value))
    if typed.type == ValueType.STRING:
        return head + b"".join(_text(item) for item in typed.value)
    given = np.asarray(typed.value)
    numbers = given.astype("<" + NUMBERS[typed.type])
    if numbers.ndim != 1:
        raise ValueError("not one dimension")
    if numbers.dtype.kind in "iub" and not np.array_equal(numbers, given):
        raise ValueError("out of range")
    return head + numbers.tobytes()


def _typed(key: str, value: Any) -> Typed:
    if isinstance(value, (np.ndarray, np.generic)):
        kind = _VALUES.get(value.dtype.str[1:])
        if kind is not None and (isinstance(value, np.generic) or value.ndim == 1):
            return Typed(value if isinstance(value, np.ndarray) else value.item(), kind)
    elif isinstance(value, bool):
        return Typed(value, ValueType.BOOL)
    elif isinstance(value, (int, float, str, bytes)):
        return Typed(value, _scalar(value))
    elif isinstance(value, Sequence) and value:
        kinds = {_scalar(item) for item in value}
        if ValueType.STRING not in kinds or len(kinds) == 1:
            # the widest number holds them all
            for kind in (ValueType.STRING, ValueType.FLOAT32, ValueType.INT64, ValueType.UINT64, ValueType.INT32):
                if kind in kinds:
                    return Typed(list(value), kind)
            return Typed(list(value), next(iter(kinds)))
    raise InvalidRequest(
        f"metadata {key!r}: no GGUF type for {value!r:.80}; give a number, a text, a bool, a list of one of them that "
        "is not empty, or Typed"
    )


def _scalar(value: object) -> ValueType:
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        if 0 <= value < 1 << 32:
            return ValueType.UINT32
        if -(1 << 31) <= value < 0:
            return ValueType.INT32
        return ValueType.INT64 if value < 1 << 63 else ValueType.UINT64
    if isinstance(value, float):
        return ValueType.FLOAT32
    return ValueType.STRING
