"""A batch of tokens and embeddings together, as libllama takes it (struct llama_batch_ext)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InvalidRequest
from .batch import Batch


def extended_batch(ffi: Any, lib: Any, context: Any, batch: Batch) -> Any:
    """The rows of a batch that was checked, for llama_process.

    Args:
        context: the pointer of the context that computes it.

    Returns:
        a pointer that frees itself; libllama has copied what it holds.

    Raises:
        InvalidRequest: libllama refused a row.
    """
    made = ffi.gc(lib.llama_batch_ext_init(context), lib.llama_batch_ext_free)
    add_token, add_embedding, place = (
        lib.llama_batch_ext_add_token,
        lib.llama_batch_ext_add_embd,
        lib.llama_batch_ext_set_pos,
    )
    n = batch.n_tokens
    tokens, seq_ids = batch.token[:n].tolist(), batch.seq[:n, 0].tolist()
    positions = np.repeat(batch.pos[:n, None], 4, axis=1)
    found: list[int] = []
    for start, rows, places in batch.embedded:
        found += [add_token(made, seq_ids[i], tokens[i]) for i in range(len(found), start)]
        positions[start : start + len(rows)] = places
        width = rows.shape[1]
        row = ffi.new("struct llama_embd *", {"n_rows": 1, "n_embd": width})
        data = ffi.from_buffer("float[]", rows)
        for i in range(len(rows)):
            row.data = data + i * width
            found.append(add_embedding(made, seq_ids[start + i], row[0]))
    found += [add_token(made, seq_ids[i], tokens[i]) for i in range(len(found), n)]
    if found != list(range(n)):
        raise InvalidRequest("libllama refused a row of the batch: more of them than n_batch?")
    at = ffi.from_buffer("llama_pos[]", positions)
    for i in range(n):
        place(made, i, at + 4 * i)
    for i in np.flatnonzero(batch.output[:n]).tolist():
        lib.llama_batch_ext_set_output_logits(made, i, True)
    for i in np.flatnonzero(batch.n_seq[:n] > 1).tolist():
        for seq_id in batch.seq[i, 1 : batch.n_seq[i]].tolist():
            lib.llama_batch_ext_add_seq(made, i, seq_id)
    return made
