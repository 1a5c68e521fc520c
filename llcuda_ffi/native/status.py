"""The one place where a return code of libllama becomes an exception."""

from __future__ import annotations

from ..errors import BackendFailure, Cancelled, InvalidRequest, NoKvSlot
from .log import Listener


def check_decode(code: int, heard: Listener) -> None:
    """Raise what the result of llama_decode or llama_encode means.

    Args:
        code: the result.
        heard: the listener of the call.

    Raises:
        NoKvSlot: 1, the KV cache has no room for the batch.
        Cancelled: 2, the abort callback stopped the computation.
        InvalidRequest: -1, libllama refused the batch.
        BackendFailure: any other code below 0.
    """
    if code == 0:
        return
    if code == 1:
        raise NoKvSlot(
            "the KV cache has no room for this batch: free sequences (Memory.remove), send a smaller batch, "
            "or make the context with a larger n_ctx"
        )
    if code == 2:
        raise Cancelled("the computation was stopped by the abort callback")
    if code == -1:
        raise InvalidRequest(f"libllama refused the batch (positions of a sequence must continue it){heard.why()}")
    raise BackendFailure(f"the backend could not compute the batch (code {code}){heard.why()}")
