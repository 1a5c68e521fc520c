"""Where everything lies in a GGUF file. Each length is checked against the file."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from math import prod

import numpy as np

from ..errors import InvalidModelFile, UnsupportedModel
from .types import BLOCKS, NUMBERS, SIZES, GGMLType, ValueType, value_name

MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME = 64  # GGML_MAX_NAME, with the closing NUL
MAX_ITEMS = 1 << 30  # of a string or an array
LARGEST = (1 << 63) - 1
CHUNK = 4096  # strings that are stepped over at once


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata entry. `offset` is where its value, or an array's first item, begins."""

    key: str
    type: ValueType
    item_type: ValueType | None
    offset: int
    count: int
    strings: np.ndarray | None = None  # of a string array: offset of each item's length

    @property
    def kind(self) -> str:
        """The type for messages: "uint32", "array of string"."""
        return value_name(self.type) if self.item_type is None else f"array of {value_name(self.item_type)}"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's entry.

    Attributes:
        name: its name.
        n_dims: number of dimensions in the file.
        shape: sizes in ggml's order, the contiguous dimension first.
        ggml_type: type of its weights.
        offset: bytes from the start of the data section.
    """

    name: str
    n_dims: int
    shape: tuple[int, ...]
    ggml_type: GGMLType
    offset: int

    @property
    def numel(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        weights, size = BLOCKS[self.ggml_type]
        return self.numel // weights * size

    @property
    def ne(self) -> tuple[int, int, int, int]:
        """All four sizes, as libllama holds them."""
        a, b, c, d = (*self.shape, 1, 1, 1, 1)[:4]
        return a, b, c, d


@dataclass(slots=True)
class Layout:
    """What `parse` found."""

    version: int
    order: str  # "<" or ">"
    size: int
    alignment: int = 32
    data_offset: int = 0
    fields: dict[str, Field] = field(default_factory=dict)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        """Whether the byte order is this machine's."""
        return (self.order == "<") == (sys.byteorder == "little")


class _Cursor:
    """Reads forward through a buffer and never past its end."""

    def __init__(self, buffer: memoryview, name: str) -> None:
        self.buffer, self.name, self.at, self.end = buffer, name, 0, len(buffer)
        self.order("<")

    def order(self, order: str) -> None:
        self.low = 0 if order == "<" else 7  # which byte of a uint64 is its lowest
        self._u32 = struct.Struct(order + "I").unpack_from
        self._u64 = struct.Struct(order + "Q").unpack_from

    def need(self, n: int, what: str) -> int:
        """Step over `n` bytes and return where they began."""
        at = self.at
        if n > self.end - at:
            raise InvalidModelFile(
                f"{self.name} is cut short: {what} at byte {at} needs {n} bytes, {self.end - at} are left"
            )
        self.at = at + n
        return at

    def u32(self, what: str) -> int:
        return int(self._u32(self.buffer, self.need(4, what))[0])

    def u64(self, what: str) -> int:
        return int(self._u64(self.buffer, self.need(8, what))[0])

    def text(self, what: str) -> str:
        n = self.u64(what)
        at = self.need(n, what)
        return bytes(self.buffer[at : at + n]).decode("utf-8", "surrogateescape")

    def strings(self, n: int, what: str) -> np.ndarray:
        """Step over `n` strings; the offset of each."""
        if n * 8 > self.end - self.at:
            raise InvalidModelFile(f"{self.name} is cut short: {what} should hold {n} strings")
        found = np.empty(n, dtype=np.int64)
        for first in range(0, n, CHUNK):
            count = min(CHUNK, n - first)
            starts = self._short_strings(count)
            found[first : first + count] = self._strings(count, what) if starts is None else starts
        return found

    def _short_strings(self, n: int) -> np.ndarray | None:
        """`_strings` for items of less than 256 bytes, several times faster: one byte of each length is read,
        and numpy then checks that the other seven are 0. None where that is not so."""
        at, buffer, low = self.at, self.buffer, self.low
        starts = [0] * n
        try:
            for i in range(n):
                starts[i] = at
                at += 8 + buffer[at + low]
        except IndexError:
            return None
        if at > self.end:
            return None
        found = np.array(starts, dtype=np.int64)
        data = np.frombuffer(buffer, np.uint8)
        if any(data[found + i].any() for i in range(8) if i != low):
            return None
        self.at = at
        return found

    def _strings(self, n: int, what: str) -> list[int]:
        at, buffer, end, u64 = self.at, self.buffer, self.end - 8, self._u64
        starts = [0] * n
        for i in range(n):
            if at > end:
                raise InvalidModelFile(f"{self.name} is cut short in {what}")
            starts[i] = at
            at += 8 + u64(buffer, at)[0]
        if at > self.end:
            raise InvalidModelFile(f"{self.name} is cut short: a string of {what} ends beyond the file")
        self.at = at
        return starts


def parse(buffer: memoryview, name: str) -> Layout:
    """Find every field and tensor of the GGUF file in `buffer`.

    Args:
        buffer: the whole file.
        name: what to call it in messages.

    Raises:
        InvalidModelFile: it is not a GGUF, is cut short, or contradicts itself.
        UnsupportedModel: a version or a tensor type that is not known here.
    """
    cursor = _Cursor(buffer, name)
    magic = bytes(buffer[:4])
    if magic != b"GGUF":
        raise InvalidModelFile(f"{name} is not a GGUF file: it begins with {magic!r} instead of b'GGUF'")
    cursor.at = 4
    version = cursor.u32("the version")
    order = "<"
    if version & 0xFFFF == 0 and version:  # the other byte order
        order = ">"
        cursor.order(order)
        cursor.at = 4
        version = cursor.u32("the version")
    if version not in (2, 3):
        raise UnsupportedModel(f"{name} is GGUF version {version}: 2 and 3 are supported, convert it again")
    layout = Layout(version, order, len(buffer))
    n_tensors, n_fields = cursor.u64("the number of tensors"), cursor.u64("the number of metadata entries")
    # the smallest entries are 13 and 24 bytes: a count beyond that would only run into the end later
    if n_fields * 13 + n_tensors * 24 > layout.size:
        raise InvalidModelFile(
            f"{name} says it has {n_fields} metadata entries and {n_tensors} tensors: "
            f"more than {layout.size} bytes can hold"
        )
    for i in range(n_fields):
        found = _field(cursor, i)
        if found.key in layout.fields:
            raise InvalidModelFile(f"{name} has the metadata key {found.key!r} twice")
        layout.fields[found.key] = found
    layout.alignment = _alignment(layout, buffer, name)
    for i in range(n_tensors):
        info = _tensor(cursor, i)
        if info.name in layout.tensors:
            raise InvalidModelFile(f"{name} has the tensor {info.name!r} twice")
        layout.tensors[info.name] = info
    layout.data_offset = -(-cursor.at // layout.alignment) * layout.alignment if n_tensors else cursor.at
    _check_offsets(layout, name)
    return layout


def _field(cursor: _Cursor, i: int) -> Field:
    name = cursor.name
    key = cursor.text(f"the key of metadata entry {i}")
    if not key:
        raise InvalidModelFile(f"{name}: metadata entry {i} has an empty key")
    number = cursor.u32(f"the type of {key!r}")
    if number != ValueType.ARRAY:
        kind = _value_type(number, key, name)
        if kind == ValueType.STRING:
            n = cursor.u64(f"the length of {key!r}")
            at = cursor.need(n, f"the value of {key!r}")
            if n > MAX_ITEMS:
                raise InvalidModelFile(f"{name}: {key!r} is a string of {n} bytes: {MAX_ITEMS} is the most")
            return Field(key, kind, None, at, n)
        return Field(key, kind, None, cursor.need(SIZES[kind], f"the value of {key!r}"), 1)
    number = cursor.u32(f"the item type of {key!r}")
    if number == ValueType.ARRAY:
        raise UnsupportedModel(f"{name}: {key!r} is an array of arrays, which libllama does not read")
    kind = _value_type(number, key, name)
    n = cursor.u64(f"the length of {key!r}")
    if n > MAX_ITEMS:
        raise InvalidModelFile(f"{name}: {key!r} is an array of {n} items: {MAX_ITEMS} is the most")
    at = cursor.at
    if kind == ValueType.STRING:
        return Field(key, ValueType.ARRAY, kind, at, n, cursor.strings(n, repr(key)))
    cursor.need(n * SIZES[kind], f"the array {key!r}")
    return Field(key, ValueType.ARRAY, kind, at, n)


def _value_type(number: int, key: str, name: str) -> ValueType:
    if number not in NUMBERS and number != ValueType.STRING:
        raise InvalidModelFile(f"{name}: {key!r} has the unknown value type {number}: 0 to 12 exist")
    return ValueType(number)


def _alignment(layout: Layout, buffer: memoryview, name: str) -> int:
    found = layout.fields.get("general.alignment")
    if found is None:
        return 32
    if found.type != ValueType.UINT32:
        raise InvalidModelFile(f"{name}: general.alignment must be a uint32, not {found.kind}")
    alignment = int(struct.unpack_from(layout.order + "I", buffer, found.offset)[0])
    if alignment == 0 or alignment & (alignment - 1):
        raise InvalidModelFile(f"{name}: general.alignment must be a power of two, not {alignment}")
    return alignment


def _tensor(cursor: _Cursor, i: int) -> TensorInfo:
    file = cursor.name
    name = cursor.text(f"the name of tensor {i}")
    if len(name.encode("utf-8", "surrogateescape")) >= MAX_NAME:
        raise InvalidModelFile(f"{file}: the name of tensor {i} is longer than {MAX_NAME - 1} bytes: {name[:40]!r}...")
    n_dims = cursor.u32(f"the dimensions of tensor {name!r}")
    if n_dims > MAX_DIMS:
        raise InvalidModelFile(f"{file}: tensor {name!r} has {n_dims} dimensions: {MAX_DIMS} is the most")
    shape = tuple(cursor.u64(f"the shape of tensor {name!r}") for _ in range(n_dims))
    number = cursor.u32(f"the type of tensor {name!r}")
    offset = cursor.u64(f"the offset of tensor {name!r}")
    try:
        kind = GGMLType(number)
    except ValueError:
        raise UnsupportedModel(f"{file}: tensor {name!r} has the unknown type {number}") from None
    weights, size = BLOCKS[kind]
    row = shape[0] if shape else 1
    if row % weights:
        raise InvalidModelFile(
            f"{file}: tensor {name!r} has rows of {row} weights: {kind.name} needs a multiple of {weights}"
        )
    if 0 in shape:
        raise InvalidModelFile(f"{file}: tensor {name!r} is empty: its shape is {shape}")
    if prod(shape) > LARGEST // size:
        raise InvalidModelFile(f"{file}: tensor {name!r} with shape {shape} is larger than any file")
    return TensorInfo(name, n_dims, shape, kind, offset)


def _check_offsets(layout: Layout, name: str) -> None:
    """Tensors follow each other in order, each padded to the alignment, and all end inside the file."""
    expected, room = 0, layout.size - layout.data_offset
    for info in layout.tensors.values():
        if info.offset != expected:
            raise InvalidModelFile(
                f"{name}: tensor {info.name!r} is at offset {info.offset} of the data, not {expected}: "
                "tensors must follow each other without overlap or gap"
            )
        if info.offset + info.nbytes > room:
            raise InvalidModelFile(
                f"{name} is cut short: tensor {info.name!r} needs {info.offset + info.nbytes} bytes of data "
                f"and the file has {max(room, 0)}: download it again"
            )
        expected += -(-info.nbytes // layout.alignment) * layout.alignment
