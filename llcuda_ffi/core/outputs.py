"""What the last computation of a context left: logits and embeddings, read from libllama's own memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from ..enums import PoolingType
from ..errors import InvalidRequest
from ..native.handle import Handle
from ..params import INT32_MAX, integer
from .context_settings import HIDDEN
from .model import Model

Floats = npt.NDArray[np.float32]


class Outputs(Handle):
    """The base of Context that reads results.

    Attributes:
        model: what computed them.
        n_seq_max: most sequences.
        n_vocab: width of a row of logits.
        pooling_type: how embeddings of a sequence are pooled.
    """

    model: Model
    n_seq_max: int
    n_vocab: int
    pooling_type: PoolingType
    _ffi: Any
    _lib: Any
    _embeddings: bool
    _n_outputs: int
    _hidden: bool

    def logits(self, row: int = -1) -> Floats:
        """A copy of the logits of batch row `row`, float32 of shape (n_vocab,); -1 is the last output.

        Raises:
            IndexError: that row has no output.
        """
        copy: Floats = self.logits_view(row).copy()
        return copy

    def logits_view(self, row: int = -1) -> Floats:
        """The same, without a copy: libllama's own memory, valid only until the next call that computes."""
        with self.exclusive():
            return self.row_logits(row)

    def row_logits(self, row: int) -> Floats:
        """As `logits_view`, for a caller that holds `exclusive()`."""
        found = self._lib.llama_get_logits_ith(self.pointer, self._row(row))
        if not found:
            raise IndexError(f"row {row} of the last batch has no logits: set its output flag before decode()")
        row_values: Floats = np.frombuffer(self._ffi.buffer(found, 4 * self.n_vocab), np.float32)
        return row_values

    def output_logits(self, n_outputs: int) -> Floats | None:
        """The logits of all outputs of the last decode, for a caller that holds `exclusive()` (llama_get_logits).

        Returns:
            float32 (n_outputs, n_vocab), libllama's own memory; None where there are none: sampled on the device.
        """
        found = self._lib.llama_get_logits(self.pointer) if n_outputs else None
        if not found:
            return None
        size = 4 * n_outputs * self.n_vocab
        rows: Floats = np.frombuffer(self._ffi.buffer(found, size), np.float32).reshape(n_outputs, self.n_vocab)
        return rows

    def hidden(self, n_tokens: int) -> Floats:
        """The hidden states of the last batch's first tokens (llama_get_embeddings_nextn), after `keep_hidden`; or,
        of a context made with mtp=True, of a batch with outputs.

        Returns:
            float32 (n_tokens, n_embd_out), libllama's own memory, valid until the next call that computes.

        Raises:
            IndexError: the last batch had fewer tokens.
            InvalidRequest: they were not kept.
        """
        with self.exclusive():
            pointer = self.pointer
            if integer("n_tokens", n_tokens, 1, INT32_MAX) > self._n_outputs:
                raise IndexError(f"the last batch had {self._n_outputs} tokens, not {n_tokens}")
            found = getattr(self._lib, HIDDEN)(pointer) if self._hidden else None
            if not found:
                raise InvalidRequest(
                    "no hidden states were kept: call keep_hidden() before decode(), or ask for outputs"
                )
            width = self.model.n_embd_out
            rows: Floats = np.frombuffer(self._ffi.buffer(found, 4 * n_tokens * width), np.float32)
            return rows.reshape(n_tokens, width)

    def forget_outputs(self) -> None:
        """The outputs of the last decode are gone: a state was restored."""
        self._n_outputs = 0

    def _row(self, row: int) -> int:
        if not -self._n_outputs <= integer("a row", row, -sys.maxsize, sys.maxsize) < self._n_outputs:
            raise IndexError(f"there is no row {row}: the last batch had {self._n_outputs} tokens")
        return row

    def embeddings(self, row: int = -1) -> Floats:
        """A copy of the embedding of batch row `row`, float32 of shape (n_embd_out,); pooling NONE, or any LLM.

        Raises:
            IndexError: that row has no embedding.
            InvalidRequest: the context was made without embeddings=True.
        """
        with self.exclusive():
            pointer = self.pointer
            self._need_embeddings()
            found = self._lib.llama_get_embeddings_ith(pointer, self._row(row))
            if not found:
                raise IndexError(f"row {row} of the last batch has no embedding")
            return self._floats(found, self.model.n_embd_out)

    def sequence_embedding(self, seq_id: int) -> Floats:
        """A copy of the pooled embedding of a sequence, float32; with rank pooling the scores of shape (n_cls_out,).

        Raises:
            IndexError: the last batch did not hold that sequence.
            InvalidRequest: the context has no pooling, or was made without embeddings=True.
        """
        with self.exclusive():
            pointer = self.pointer
            self._need_embeddings()
            if self.pooling_type == PoolingType.NONE:
                raise InvalidRequest("this context does not pool: make it with pooling_type=MEAN, CLS or LAST")
            found = self._lib.llama_get_embeddings_seq(pointer, integer("a sequence id", seq_id, 0, self.n_seq_max - 1))
            if not found:
                raise IndexError(f"the last batch held no sequence {seq_id}")
            rank = self.pooling_type == PoolingType.RANK
            return self._floats(found, self.model.n_cls_out if rank else self.model.n_embd_out)

    def _need_embeddings(self) -> None:
        if not self._embeddings:
            raise InvalidRequest("this context gives no embeddings: make it with embeddings=True")

    def _floats(self, pointer: Any, n: int) -> Floats:
        values: Floats = np.frombuffer(self._ffi.buffer(pointer, 4 * n), np.float32).copy()
        return values
