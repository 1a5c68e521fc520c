"""Encoder-decoder models (T5): a prompt is encoded, its answer is decoded from the model's start token.

The decoder attends to what the context encoded last, whatever the sequence. So a context of such a model has one
sequence, and nothing of an earlier request is reused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch
from ..core.context import Context
from ..errors import LlcudaError, UnsupportedModel
from .request import Request
from .slot import Slot, State


class Encoder:
    """Encodes the prompts of one context."""

    def __init__(self, context: Context) -> None:
        """Bind to a context, whose micro-batch holds the longest prompt.

        Raises:
            UnsupportedModel: the model names no token to start with.
        """
        start = context.model.decoder_start_token
        start = context.model.vocab.bos if start is None else start
        if start is None:
            raise UnsupportedModel(
                f"{context.model.path.name} is an encoder-decoder model without a start token "
                "(decoder_start_token_id): nothing can be generated"
            )
        self._context, self._start = context, start
        self._batch = Batch(context.n_ubatch)

    def decoder_tokens(self, request: Request) -> npt.NDArray[np.int32]:
        """What the decoder has to compute before the next token: the start token and what was generated."""
        return np.array([self._start, *request.output.token_ids], np.int32)

    def encode(self, slots: Sequence[Slot]) -> tuple[Slot, LlcudaError] | None:
        """Encode the prompt of the slot that begins, if one does (llama_encode).

        Returns:
            None, or the slot whose prompt could not be encoded, and why.
        """
        for slot in slots:
            if slot.state is State.PROMPT and not slot.n_past and slot.request is not None:
                self._batch.clear()
                try:
                    self._batch.extend(slot.request.prompt, output="all")
                    self._context.encode(self._batch)
                except LlcudaError as error:
                    return slot, error
        return None
