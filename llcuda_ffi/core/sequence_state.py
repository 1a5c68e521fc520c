"""The inside of a sequence's state: libllama's bytes as rows of tokens, to cut, join and move between contexts.

A state (llama_state_seq_get_data) is a magic number, the sequence's id, the cache of the full attention layers, and
what PARTIAL_ONLY gives alone: the window's cache and the recurrent rows. A cache is the number of streams, the cells of
each (position, number of sequences, with M-RoPE 12 more bytes, sequence), then for each layer the rows of K, and of V,
which without flash attention are columns. Models with other caches are not known here and refused. Generations of
llama.cpp differ in what comes first and between the counts and the rows (`_FORMATS`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..enums import RopeType
from ..errors import InvalidRequest, UnsupportedModel
from .context import Context
from .memory import MemoryKind

Bytes = npt.NDArray[np.uint8]
# ABI profile → bytes of the magic number and the sequence's id, and bytes that follow the number of layers
_FORMATS = {"b7698": (0, 0), "b11669": (8, 8), "v0.6.0": (8, 8)}
_USUAL = (8, 0)


@dataclass(frozen=True)
class StateLayout:
    """What a context's states are made of.

    Attributes:
        kind, window: of its memory.
        n_stream: streams of its caches.
        extra: bytes of a cell beside its position and sequence.
        head: bytes before the first cache.
        gap: bytes between a cache's number of layers and its rows.
    """

    kind: MemoryKind
    window: int
    n_stream: int
    extra: int
    head: int = _USUAL[0]
    gap: int = _USUAL[1]

    @property
    def has_base(self) -> bool:
        """Whether there is a cache of every token."""
        return self.kind is not MemoryKind.RECURRENT

    @property
    def partial(self) -> bool:
        """Whether there is a part that cannot be rolled back."""
        return self.kind is not MemoryKind.FULL

    @classmethod
    def of(cls, context: Context) -> StateLayout:
        """The layout of a context's states.

        Raises:
            UnsupportedModel: it has no memory.
        """
        memory = context.memory
        if memory is None:
            raise UnsupportedModel(f"{context.model.path.name} keeps no memory between batches: it has no state")
        mrope = context.model.rope_type in (RopeType.MROPE, RopeType.IMROPE)
        streams = 1 if context.kv_unified else context.n_seq_max
        form = _FORMATS.get(context.model.library.profile.name, _USUAL)
        return cls(memory.kind, memory.window, streams, 12 if mrope else 0, *form)


@dataclass(frozen=True)
class _Part:
    """K or V of one layer.

    Attributes:
        head: the bytes that describe it: its type, and the size of a row, or of an element and a row's elements.
        rows: uint8, (tokens, bytes of a row); of transposed V (elements of a row, tokens, bytes of an element).
    """

    head: bytes
    rows: Bytes

    @property
    def axis(self) -> int:
        return self.rows.ndim - 2


@dataclass(frozen=True)
class KVRows:
    """The rows of some tokens, in the order of their positions.

    Attributes:
        start: the first one's position.
        cells: uint8 (tokens, extra bytes of a cell).
        transposed: whether V is kept in columns.
        gap: what follows the number of layers.
        keys, values: of each layer; some models have no values.
    """

    start: int
    cells: Bytes
    transposed: bool
    gap: bytes
    keys: tuple[_Part, ...]
    values: tuple[_Part, ...]

    def __len__(self) -> int:
        return len(self.cells)

    @staticmethod
    def parse(data: bytes | memoryview, layout: StateLayout) -> KVRows:
        """The rows in a cache of `to_bytes`.

        Raises:
            InvalidRequest: it is no cache of such a model.
        """
        return _Reader(data).base(layout, len(data))

    def part(self, start: int, stop: int) -> KVRows:
        """The tokens at `start` to `stop` - 1 of these rows."""
        return self._take(slice(start, stop), self.start + start)

    def _take(self, which: slice | npt.NDArray[np.intp], start: int) -> KVRows:
        def of(part: _Part) -> _Part:
            return replace(part, rows=part.rows[which] if part.axis == 0 else part.rows[:, which])

        return replace(
            self,
            start=start,
            cells=self.cells[which],
            keys=tuple(map(of, self.keys)),
            values=tuple(map(of, self.values)),
        )

    @staticmethod
    def join(parts: Sequence[KVRows]) -> KVRows:
        """Rows that follow each other.

        Raises:
            InvalidRequest: they do not, or are of different shapes.
        """
        first = parts[0]
        at = first.start
        for rows in parts:
            heads = [[part.head for part in side] for side in (rows.keys, rows.values)]
            if rows.start != at or heads != [[part.head for part in side] for side in (first.keys, first.values)]:
                raise InvalidRequest("the parts of a state do not fit each other")
            at += len(rows)

        def joined(side: str) -> tuple[_Part, ...]:
            layers = zip(*(getattr(rows, side) for rows in parts), strict=True)
            return tuple(
                replace(layer[0], rows=np.concatenate([part.rows for part in layer], layer[0].axis)) for layer in layers
            )

        return replace(
            first, cells=np.concatenate([rows.cells for rows in parts]), keys=joined("keys"), values=joined("values")
        )

    def to_bytes(self, n_stream: int) -> list[bytes]:
        """A cache of these tokens, of `n_stream` streams."""
        n = len(self)
        out = [struct.pack("<II", n_stream, n)]
        if n:
            cells = np.zeros((n, 12 + self.cells.shape[1]), np.uint8)
            cells[:, :4] = np.arange(self.start, self.start + n, dtype="<i4")[:, None].view(np.uint8)
            cells[:, 4] = 1
            cells[:, 8 : cells.shape[1] - 4] = self.cells
            out += [cells.tobytes(), struct.pack("<II", self.transposed, len(self.keys)), self.gap]
            out += [piece for part in (*self.keys, *self.values) for piece in (part.head, part.rows.tobytes())]
        out.append(bytes(4 * (n_stream - 1)))
        return out


class _Reader:
    """Reads a state from the front; what it does not hold raises InvalidRequest."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.view = np.frombuffer(data, np.uint8)
        self.at = 0

    def take(self, n: int) -> Bytes:
        if not 0 <= n <= len(self.view) - self.at:
            raise InvalidRequest("the state is cut short, or not one of this kind of model")
        self.at += n
        return self.view[self.at - n : self.at]

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)).tobytes())

    def cache(self, layout: StateLayout, has_values: bool) -> tuple[KVRows, int]:
        """A cache, and of how many streams it is."""
        [n_stream] = self.numbers("I")
        if not 1 <= n_stream <= 1 << 16:
            raise InvalidRequest("the state is not one of this kind of model")
        found: KVRows | None = None
        for _ in range(n_stream):
            [n] = self.numbers("I")
            if n:
                if found is not None:
                    raise InvalidRequest("the state holds several sequences")
                found = self._rows(n, layout, has_values)
        return found or KVRows(0, np.zeros((0, layout.extra), np.uint8), False, b"", (), ()), n_stream

    def base(self, layout: StateLayout, end: int) -> KVRows:
        """The first cache, which ends at `end`: without values where the keys reach it (MLA)."""
        begin = self.at
        for has_values in (True, False):
            self.at = begin
            try:
                rows, _ = self.cache(layout, has_values)
            except InvalidRequest:
                if not has_values:
                    raise
                continue
            if self.at == end:
                return rows
        raise InvalidRequest("the state is not one of this kind of model")

    def _rows(self, n: int, layout: StateLayout, has_values: bool) -> KVRows:
        size = 12 + layout.extra
        cells = self.take(n * size).reshape(n, size)
        positions = cells[:, :4].copy().view("<i4")[:, 0]
        order = np.argsort(positions, kind="stable")
        start = int(positions[order[0]])
        if (
            start < 0
            or (positions[order] != np.arange(start, start + n)).any()
            or (cells[:, 4:8] != [1, 0, 0, 0]).any()
        ):
            raise InvalidRequest("the state's positions are not those of one sequence")
        transposed, n_layer = self.numbers("II")
        if transposed > 1 or n_layer > 1 << 16:
            raise InvalidRequest("the state is not one of this kind of model")
        gap = self.take(layout.gap).tobytes()
        keys = tuple(self._part(n, False) for _ in range(n_layer))
        values = tuple(self._part(n, bool(transposed)) for _ in range(n_layer if has_values else 0))
        rows = KVRows(start, cells[:, 8 : size - 4], bool(transposed), gap, keys, values)
        return rows if (order[1:] > order[:-1]).all() else rows._take(order, start)

    def _part(self, n: int, transposed: bool) -> _Part:
        if transposed:
            head = self.take(12).tobytes()
            _, element, width = struct.unpack("<iII", head)
            return _Part(head, self.take(element * width * n).reshape(width, n, element))
        head = self.take(12).tobytes()
        row = struct.unpack("<iQ", head)[1]
        return _Part(head, self.take(row * n).reshape(n, row))


@dataclass(frozen=True)
class SequenceState:
    """A sequence's state in parts.

    Attributes:
        head: the magic number and the sequence's id.
        base: the rows of the full attention layers; None where there is no such cache (recurrent models).
        window: the rows of the sliding window, or None.
        recurrent: the recurrent rows as they are.
    """

    head: bytes
    base: KVRows | None
    window: KVRows | None
    recurrent: bytes

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview, layout: StateLayout, partial_size: int) -> SequenceState:
        """Take a state apart.

        Args:
            partial_size: bytes of the PARTIAL_ONLY state of the same sequence.

        Raises:
            InvalidRequest: it is no state of such a model.
        """
        read = _Reader(data)
        head = read.take(layout.head).tobytes()
        base = window = None
        if layout.kind is not MemoryKind.RECURRENT:
            end = len(data) if layout.kind is MemoryKind.FULL else len(data) - partial_size + layout.head
            base = read.base(layout, end)
            if layout.window and layout.kind is not MemoryKind.FULL:
                window, _ = read.cache(layout, bool(base.values) or not base.keys)
        recurrent = read.take(len(data) - read.at).tobytes()
        if bool(recurrent) != (layout.kind in (MemoryKind.RECURRENT, MemoryKind.HYBRID)):
            raise InvalidRequest("the state is not one of this kind of model")
        if recurrent and recurrent[:4] != struct.pack("<I", 1):
            raise InvalidRequest("the state holds several recurrent states")
        return cls(head, base, window, recurrent)

    @classmethod
    def parse_partial(cls, data: bytes | bytearray | memoryview, layout: StateLayout) -> SequenceState:
        """Take a PARTIAL_ONLY state apart.

        Raises:
            InvalidRequest: it is no such state of such a model, which must have a window or a recurrent state.
        """
        if layout.kind is MemoryKind.FULL:
            raise InvalidRequest("a model with full attention has no partial states")
        read = _Reader(data)
        head, window = read.take(layout.head).tobytes(), None
        if layout.kind is MemoryKind.WINDOW:
            window = read.base(layout, len(data))
        elif layout.window:
            window, _ = read.cache(layout, True)
        return cls(head, None, window, read.take(len(data) - read.at).tobytes())

    def to_bytes(self, n_stream: int) -> bytes:
        """Libllama's bytes, for a context whose caches have `n_stream` streams."""
        caches = [rows.to_bytes(n_stream) for rows in (self.base, self.window) if rows is not None]
        return b"".join([self.head, *(piece for cache in caches for piece in cache), self.recurrent])

    def partial_bytes(self, n_stream: int) -> bytes:
        """What PARTIAL_ONLY would give."""
        window = [] if self.window is None else self.window.to_bytes(n_stream)
        return b"".join([self.head, *window, self.recurrent])
