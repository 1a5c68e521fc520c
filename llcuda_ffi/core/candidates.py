"""The candidates that a sampler chooses from, in numpy memory (struct llama_token_data_array)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..native.handle import Handle
from ..native.load import Library

# struct llama_token_data
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """Room for candidates that chains choose from (struct llama_token_data_array), used again and again.

    Attributes:
        rows: (capacity,) of the fields id (int32), logit and p (float32); fill id and logit.
    """

    def __init__(self, library: Library, capacity: int = 0) -> None:
        self._ffi, self._lib = library.ffi, library.lib
        self._array = self._ffi.new("llama_token_data_array *")
        self.reserve(capacity)

    def reserve(self, capacity: int) -> None:
        """Have room for so many; what `rows` holds is lost where it grows."""
        self.rows: npt.NDArray[Any] = np.zeros(capacity, CANDIDATE)
        self._first = self._ffi.cast("llama_token_data *", self._ffi.from_buffer(self.rows))

    def choose(self, chain: Handle, start: int, size: int) -> int:
        """The token that a chain without grammar chooses from some of the rows, and accepts; -1 where it chooses none.

        For a caller that lets nobody else use the chain (llama_sampler_apply, llama_sampler_accept).
        """
        array, pointer = self._array, chain.pointer
        array.data, array.size, array.selected, array.sorted = self._first + start, size, -1, False
        self._lib.llama_sampler_apply(pointer, array)
        if not 0 <= array.selected < array.size:
            return -1
        token = int(array.data[array.selected].id)
        self._lib.llama_sampler_accept(pointer, token)
        return token

    def draw(self, sampler: Any, n: int) -> None:
        """Have a sampler draw n times from the first two rows, for nothing (llama_sampler_apply).

        For a caller that lets nobody else use the sampler.
        """
        array, apply = self._array, self._lib.llama_sampler_apply
        for _ in range(n):
            self.rows["id"][:2] = 0, 1
            self.rows["logit"][:2] = 0
            array.data, array.size, array.selected, array.sorted = self._first, 2, -1, False
            apply(sampler, array)
