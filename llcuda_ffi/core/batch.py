"""A batch: the tokens of one decode, in numpy memory that libllama reads directly (struct llama_batch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..native.load import load
from ..params import INT32_MAX, flag, integer, items, shown


class EmbeddedRows(NamedTuple):
    """Rows of a batch that are embeddings: from `start` on float32 (n, width), at int32 (n, 4) positions t, y, x, z."""

    start: int
    embeddings: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int32]


class Batch:
    """Room for `capacity` tokens. Each belongs to one sequence, or to several through `add(seq_ids=[…])`.

    The arrays may be filled directly; rows 0 to `n_tokens - 1` count.

    Attributes:
        n_tokens: how many rows are in use.
        token: int32 (capacity,), token ids.
        pos: int32 (capacity,), positions within the sequence.
        seq: int32 (capacity, n_seq_max), sequence ids; `n_seq` of them count in each row.
        n_seq: int32 (capacity,), how many sequences each token belongs to (1 or more).
        output: int8 (capacity,), 1 where logits or embeddings are wanted.
        embedded: rows that are embeddings in place of tokens.
    """

    def __init__(self, capacity: int, n_seq_max: int = 1) -> None:
        """Allocate once, use many times.

        Raises:
            InvalidRequest: a size below 1.
        """
        self.capacity = integer("capacity", capacity, 1, INT32_MAX)
        self.n_seq_max = integer("n_seq_max", n_seq_max, 1, 1 << 16)
        ffi = load().ffi
        self.token: npt.NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.pos: npt.NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.seq: npt.NDArray[np.int32] = np.zeros((capacity, n_seq_max), np.int32)
        self.n_seq: npt.NDArray[np.int32] = np.ones(capacity, np.int32)
        self.output: npt.NDArray[np.int8] = np.zeros(capacity, np.int8)
        self.n_tokens = 0
        self.embedded: list[EmbeddedRows] = []
        rows = self.seq.ctypes.data + np.arange(capacity, dtype=np.uintp) * np.uintp(self.seq.strides[0])
        self._rows: npt.NDArray[np.uintp] = rows
        self._arrays = (self.token, self.pos, self.seq, self.n_seq, self.output)
        self._struct: Any = ffi.new("struct llama_batch *")
        # views keep the arrays alive and in place: an array with exported memory refuses to be resized
        self._views = (
            ffi.from_buffer("llama_token[]", self.token),
            ffi.from_buffer("llama_pos[]", self.pos),
            ffi.from_buffer("int32_t[]", self.n_seq),
            ffi.from_buffer("int8_t[]", self.output),
            ffi.from_buffer(rows),
            ffi.from_buffer("llama_seq_id[]", self.seq),
        )
        struct = self._struct
        struct.token, struct.pos, struct.n_seq_id, struct.logits = self._views[:4]
        struct.embd = ffi.NULL
        struct.seq_id = ffi.cast("llama_seq_id **", self._views[4])

    def __len__(self) -> int:
        return self.n_tokens

    def clear(self) -> None:
        """Forget all rows."""
        self.n_tokens = 0
        if self.embedded:
            self.embedded = []

    def _room(self, n: int) -> int:
        start = integer("batch.n_tokens", self.n_tokens, 0, self.capacity)
        if start + n > self.capacity:
            raise InvalidRequest(
                f"the batch has room for {self.capacity - start} more tokens, not {n}: decode it first"
            )
        return start

    def add(self, token: int, pos: int, seq_ids: int | Sequence[int] = 0, *, output: bool = False) -> int:
        """Append one token; returns its row.

        Raises:
            InvalidRequest: the batch is full, or a value is out of range.
        """
        row = self._room(1)
        ids = [seq_ids] if isinstance(seq_ids, int) else items("seq_ids", seq_ids)
        if not 1 <= len(ids) <= self.n_seq_max:
            raise InvalidRequest(
                f"a token belongs to 1 to {self.n_seq_max} sequences (the batch's n_seq_max), not {len(ids)}"
            )
        self.token[row] = integer("a token id", token, 0, INT32_MAX)
        self.pos[row] = integer("a position", pos, 0, INT32_MAX)
        for i, seq in enumerate(ids):
            self.seq[row, i] = integer("a sequence id", seq, 0, INT32_MAX)
        self.n_seq[row] = len(ids)
        self.output[row] = flag("output", output)
        self.n_tokens = row + 1
        return row

    def extend(self, tokens: npt.ArrayLike, pos: int = 0, seq_id: int = 0, *, output: str = "last") -> tuple[int, int]:
        """Append a run of tokens of one sequence, vectorised; returns its first row and the row after its last.

        Args:
            tokens: token ids, shape (n,).
            pos: position of the first one.
            output: which rows give logits: "last", "all" or "none".

        Raises:
            InvalidRequest: the batch is full, or a value is out of range.
        """
        ids = np.asarray(tokens)
        n = ids.size
        if ids.ndim != 1 or (n and ids.dtype.kind not in "iu"):
            raise InvalidRequest(f"token ids must be integers in one dimension, not {ids.dtype} of shape {ids.shape}")
        if n and not (int(ids.min()) >= 0 and int(ids.max()) <= INT32_MAX):
            raise InvalidRequest("a token id is negative or beyond int32")
        start = self._room(n)
        stop = start + n
        pos = integer("a position", pos, 0, INT32_MAX - n)
        if not isinstance(output, str) or output not in ("last", "all", "none"):
            raise InvalidRequest(f"output must be 'last', 'all' or 'none', not {shown(output)}")
        self.token[start:stop] = ids
        self.pos[start:stop] = np.arange(pos, pos + n, dtype=np.int32)
        self.seq[start:stop, 0] = integer("a sequence id", seq_id, 0, INT32_MAX)
        self.n_seq[start:stop] = 1
        self.output[start:stop] = output == "all"
        if output == "last" and n:
            self.output[stop - 1] = 1
        self.n_tokens = stop
        return start, stop

    def embed(
        self, embeddings: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], seq_id: int = 0
    ) -> tuple[int, int]:
        """Append embeddings of one sequence, none with an output; returns the first row and the row after the last.

        Only contexts that mix them with tokens compute such a batch (`Context.mixes_embeddings`).

        Args:
            embeddings: float32 (n, n_embd_inp).
            positions: int32 (n,), or (4, n) with M-RoPE: all t, all y, all x, all z.

        Raises:
            InvalidRequest: the batch is full, a shape does not fit, a position is negative, or a number is none.
        """
        rows, places = checked_embeddings(embeddings, positions)
        start = self._room(len(rows))
        stop = start + len(rows)
        self.token[start:stop] = -1
        self.pos[start:stop] = places if places.ndim == 1 else places[0]
        self.seq[start:stop, 0] = integer("a sequence id", seq_id, 0, INT32_MAX)
        self.n_seq[start:stop], self.output[start:stop] = 1, 0
        four = np.ascontiguousarray(np.broadcast_to(places, (4, len(rows))).T)
        self.embedded.append(EmbeddedRows(start, rows, four))
        self.n_tokens = stop
        return start, stop

    def fill(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        seq_ids: Sequence[int],
        *,
        start: int = 0,
        outputs: Sequence[int] | None = None,
    ) -> None:
        """Replace the rows from `start` on by one token of each of some sequences; without checks.

        Written item by item: for the few rows of a step that is faster than numpy.

        Args:
            outputs: 1 for each that gives logits; None: all do.
        """
        n = len(tokens)
        stop = start + n
        token, pos, _, output, _, seq = self._views
        token[start:stop], pos[start:stop], output[start:stop] = tokens, positions, outputs or [1] * n
        if self.n_seq_max == 1:
            seq[start:stop] = seq_ids
        else:
            self.seq[start:stop, 0] = seq_ids
            self.n_seq[start:stop] = 1
        self.n_tokens = stop

    def check(self, n_vocab: int, n_seq_max: int) -> None:
        """Refuse what libllama would answer with an abort or a corrupted cache.

        Raises:
            InvalidRequest: an empty batch, or a token, sequence, position or count out of range.
        """
        n = self.n_tokens
        if not 1 <= n <= self.capacity:
            raise InvalidRequest(f"a batch must hold 1 to {self.capacity} tokens, not {n}")
        now = (self.token, self.pos, self.seq, self.n_seq, self.output)
        if any(mine is not theirs for mine, theirs in zip(self._arrays, now, strict=True)):
            raise InvalidRequest("an array of the batch was replaced, but libllama reads the first: fill it in place")
        token, pos, n_seq = self.token[:n], self.pos[:n], self.n_seq[:n]
        if self.embedded:
            is_token = np.ones(n, bool)
            for first, rows, _ in self.embedded:
                if first + len(rows) > n:
                    raise InvalidRequest("rows of embeddings were cut off: clear() the batch and fill it again")
                is_token[first : first + len(rows)] = False
            token = token[is_token]
        if token.size and (token.min() < 0 or token.max() >= n_vocab):
            raise InvalidRequest(f"the batch holds a token id outside the vocabulary (0 to {n_vocab - 1})")
        if pos.min() < 0:
            raise InvalidRequest("the batch holds a negative position")
        most = int(n_seq.max())
        if n_seq.min() < 1 or most > self.n_seq_max:
            raise InvalidRequest(f"each token must belong to 1 to {self.n_seq_max} sequences")
        seq = self.seq[:n, 0] if most == 1 else self.seq[:n][np.arange(self.n_seq_max) < n_seq[:, None]]
        if seq.min() < 0 or seq.max() >= n_seq_max:
            raise InvalidRequest(
                f"the batch holds a sequence id outside 0 to {n_seq_max - 1} (the context's n_seq_max)"
            )

    def native(self) -> Any:
        """struct llama_batch to pass by value, its n_tokens up to date; for a batch that was checked."""
        self._struct.n_tokens = self.n_tokens
        return self._struct[0]


def checked_embeddings(
    embeddings: npt.NDArray[np.float32], positions: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Both as contiguous arrays.

    Raises:
        InvalidRequest: a shape that does not fit, a negative position, or a number that is none.
    """
    rows, places = np.ascontiguousarray(embeddings, np.float32), np.ascontiguousarray(positions, np.int32)
    if rows.ndim != 2 or not rows.size:
        raise InvalidRequest(f"embeddings must be of shape (n, width), not {rows.shape}")
    if places.shape not in ((len(rows),), (4, len(rows))) or int(places.min()) < 0:
        raise InvalidRequest(
            f"{len(rows)} embeddings need positions of shape (n,) or (4, n) from 0, not {places.shape}"
        )
    if not np.isfinite(rows).all():
        raise InvalidRequest("an embedding that is not a finite number would spoil the sequences beside it")
    return rows, places
