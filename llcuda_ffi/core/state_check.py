"""What is looked at of a saved state before libllama reads it.

libllama believes the counts in a state: one of 2³¹ cells is reserved before a byte of them was there, and two recurrent
cells end the process. A hash says that a state is whole, not that it is well meant; so counts, sizes, positions and
sequences are held against the bytes that are there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from ..errors import InvalidRequest
from ..params import INT32_MAX
from .memory import MemoryKind
from .sequence_state import StateLayout

_MOST_LAYERS = 1 << 16
_LONGEST_NAME = 256


def check_sequence(data: bytes | bytearray, layout: StateLayout, n_stream: int, *, latent: bool, partial: bool) -> None:
    """Check the state of one sequence, or its PARTIAL_ONLY state.

    Args:
        n_stream: of the context that it was read from.
        latent: whether the model has latent attention (MLA), where there may be keys without values.

    Raises:
        InvalidRequest: it is no such state.
    """
    if partial and not layout.partial and len(data) == layout.head:
        return  # some generations of llama.cpp give nothing there, others all
    has_base = layout.has_base and not (partial and layout.partial)
    _try_both(latent, lambda values: _Walk(data, layout, n_stream, None).sequence(has_base, values))


def check_context(data: bytes | bytearray, layout: StateLayout, n_seq_max: int, *, latent: bool) -> None:
    """Check the state of a whole context.

    Args:
        latent: as for `check_sequence`.

    Raises:
        InvalidRequest: it is no such state.
    """
    _try_both(latent, lambda values: _Walk(data, layout, layout.n_stream, n_seq_max).context(values))


def _try_both(latent: bool, walk: Callable[[bool], None]) -> None:
    """Whether there are values beside the keys is not written in a state."""
    try:
        walk(True)
    except InvalidRequest:
        if not latent:
            raise
        walk(False)


class _Walk:
    """Goes over a state from the front."""

    def __init__(self, data: bytes | bytearray, layout: StateLayout, n_stream: int, n_seq_max: int | None) -> None:
        """
        Args:
            n_seq_max: sequences of the context; None for the state of one sequence.
        """
        self._view, self._at = memoryview(data), 0
        self._layout, self._n_stream, self._n_seq_max = layout, n_stream, n_seq_max

    def sequence(self, has_base: bool, has_values: bool) -> None:
        """All of a sequence's state."""
        self._skip(self._layout.head)
        self._memory(has_base, has_values)

    def context(self, has_values: bool) -> None:
        """All of a context's state: the architecture's name comes first."""
        [length] = self._numbers("I")
        self._need(length <= _LONGEST_NAME)
        self._skip(length)
        self._memory(self._layout.has_base, has_values)

    def _memory(self, has_base: bool, has_values: bool) -> None:
        if has_base:
            self._cache(has_values)
        if self._layout.window and self._layout.partial:
            self._cache(has_values)
        if self._layout.kind in (MemoryKind.RECURRENT, MemoryKind.HYBRID):
            self._rows(self._recurrent())
        self._need(self._at == len(self._view))

    def _cache(self, has_values: bool) -> None:
        """A KV cache: its streams, the cells of each, then the rows of each layer's keys and values."""
        [n_stream] = self._numbers("I")
        self._need(n_stream == self._n_stream)
        for stream in range(n_stream):
            [n] = self._numbers("I")
            if not n:
                continue
            if self._n_seq_max is None:
                self._cells(n)
            else:
                for _ in range(n):
                    self._cell(stream if n_stream > 1 else None, self._n_seq_max)
            transposed, n_layer = self._numbers("II")
            self._need(transposed <= 1 and n_layer <= _MOST_LAYERS)
            self._skip(self._layout.gap)
            for _ in range(n_layer):
                self._skip(n * self._numbers("iQ")[1])
            for _ in range(n_layer if has_values else 0):
                if transposed:
                    _, element, width = self._numbers("iII")
                    self._skip(n * element * width)
                else:
                    self._skip(n * self._numbers("iQ")[1])

    def _cells(self, n: int) -> None:
        """Position and sequence of each, which is one."""
        size = 12 + self._layout.extra
        begin = self._at
        self._skip(n * size)
        cells = np.frombuffer(self._view, np.uint8, n * size, begin).reshape(n, size)
        positions, counts = (cells[:, at : at + 4].copy().view("<i4") for at in (0, 4))
        self._need(bool((positions >= 0).all() and (positions < INT32_MAX).all() and (counts == 1).all()))

    def _cell(self, stream: int | None, n_seq_max: int) -> list[int]:
        """One cell's position and sequences, where it may have several; with `stream` it has that one."""
        position, n_seq = self._numbers("iI")
        self._need(0 <= position < INT32_MAX and 1 <= n_seq <= n_seq_max)
        self._skip(self._layout.extra)
        ids = list(self._numbers(f"{n_seq}i"))
        self._need(len(set(ids)) == n_seq and all(0 <= one < n_seq_max for one in ids))
        self._need(stream is None or ids == [stream])
        return ids

    def _rows(self, n: int) -> None:
        """The rows of so many recurrent states, of each layer that has one."""
        self._numbers("II")
        while self._at < len(self._view):
            self._skip(n * self._numbers("iQ")[1])

    def _recurrent(self) -> int:
        """The cells of the recurrent state: one for a sequence."""
        [n] = self._numbers("I")
        if self._n_seq_max is None:
            self._need(n <= 1)
            if n:
                position, n_seq = self._numbers("iI")
                self._need(0 <= position < INT32_MAX and n_seq == 0)
            return n
        self._need(n <= self._n_seq_max)
        seen: set[int] = set()
        for _ in range(n):
            position, n_seq = self._numbers("iI")
            self._need(0 <= position < INT32_MAX and 1 <= n_seq <= self._n_seq_max)
            ids = self._numbers(f"{n_seq}i")
            self._need(len({*ids}) == n_seq and seen.isdisjoint(ids) and all(0 <= i < self._n_seq_max for i in ids))
            seen.update(ids)
        return n

    def _numbers(self, form: str) -> tuple[int, ...]:
        begin = self._at
        self._skip(struct.calcsize("<" + form))
        return struct.unpack_from("<" + form, self._view, begin)

    def _skip(self, n: int) -> None:
        self._need(n <= len(self._view) - self._at)
        self._at += n

    @staticmethod
    def _need(sound: bool) -> None:
        if not sound:
            raise InvalidRequest("the saved state is not one of this kind of model: its counts and sizes do not fit")
