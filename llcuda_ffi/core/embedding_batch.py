"""A batch of embeddings in place of tokens (struct llama_batch with `embd`): pieces of images or of sounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..native.load import load
from .batch import checked_embeddings


class EmbeddingBatch:
    """Embeddings at positions of their own; none of them has an output.

    Attributes:
        n_tokens: how many.
        width: numbers of each.
        sections: positions of each: 1, or 4 with M-RoPE.
        seq_ids: int32 (n,), the sequence of each.
    """

    def __init__(
        self, embeddings: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], seq_ids: npt.NDArray[np.int32]
    ) -> None:
        """
        Args:
            embeddings: float32 (n, n_embd_inp).
            positions: int32 (n,), or (4, n) with M-RoPE: all t, all y, all x, all z.
            seq_ids: int32 (n,).

        Raises:
            InvalidRequest: a shape that does not fit, a negative position, or a number that is none.
        """
        rows, places = checked_embeddings(embeddings, positions)
        self.n_tokens, self.width = rows.shape
        self.sections = places.ndim and (4 if places.ndim == 2 else 1)
        ffi = load().ffi
        n = self.n_tokens
        self.seq_ids = seq = np.ascontiguousarray(seq_ids, np.int32)
        if seq.shape != (n,):
            raise InvalidRequest(f"{n} embeddings need as many sequence ids, not {seq.shape}")
        ids = seq.ctypes.data + np.arange(n, dtype=np.uintp) * np.uintp(4)
        counts, outputs = np.ones(n, np.int32), np.zeros(n, np.int8)
        self._arrays = (rows, places, seq, ids, counts, outputs)
        self._views = (
            ffi.from_buffer("float[]", rows),
            ffi.from_buffer("llama_pos[]", places),
            ffi.from_buffer("int32_t[]", counts),
            ffi.from_buffer("int8_t[]", outputs),
            ffi.from_buffer(ids),
        )
        self._struct: Any = ffi.new("struct llama_batch *")
        struct = self._struct
        struct.n_tokens, struct.token = n, ffi.NULL
        struct.embd, struct.pos, struct.n_seq_id, struct.logits = self._views[:4]
        struct.seq_id = ffi.cast("llama_seq_id **", self._views[4])

    def native(self) -> Any:
        """The struct to pass by value."""
        return self._struct[0]
