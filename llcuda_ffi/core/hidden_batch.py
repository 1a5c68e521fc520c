"""A batch of tokens with hidden states (struct llama_batch with `token` and `embd`), from which MTP layers draft."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..native.load import load
from ..params import integer
from .batch import Batch


class HiddenBatch(Batch):
    """A Batch of one sequence for each token; fill `hidden` beside it. All of its tokens have outputs, or none.

    Attributes:
        width: numbers of a hidden state, the model's n_embd_out.
        hidden: float32 (capacity, width): beside each token, what the model computed for the token before it.
    """

    def __init__(self, capacity: int, width: int) -> None:
        """Allocate once, use many times.

        Raises:
            InvalidRequest: a size below 1.
        """
        super().__init__(capacity)
        self.width = integer("width", width, 1, 1 << 24)
        self.hidden: npt.NDArray[np.float32] = np.zeros((capacity, width), np.float32)
        self._own = self.hidden
        self._hidden_view = load().ffi.from_buffer("float[]", self.hidden)
        self._struct.embd = self._hidden_view

    def check(self, n_vocab: int, n_seq_max: int) -> None:
        """As `Batch.check`, and the hidden states.

        Raises:
            InvalidRequest: what `Batch.check` refuses, a hidden state with a number that is none, or outputs of some.
        """
        super().check(n_vocab, n_seq_max)
        output = self.output[: self.n_tokens]
        if output.any() != output.all():  # libllama reads beyond the rows that it has, or others
            raise InvalidRequest("all tokens of a HiddenBatch have outputs, or none: decode them apart")
        if self.hidden is not self._own:
            raise InvalidRequest("the array `hidden` was replaced, but libllama reads the first: fill it in place")
        if not np.isfinite(self.hidden[: self.n_tokens]).all():
            raise InvalidRequest("a hidden state that is not finite would spoil the sequences beside it")
