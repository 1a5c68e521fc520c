"""A context without a model: what it holds is known token by token, and the next token follows from all of them.

So a scheduler on it computes thousands of tokens in a second, and whatever is wrong in its plans, its reuse or its
recovery gives another token than `expected`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np

from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.memory import MemoryKind
from llcuda_ffi.engine.loop import EngineLoop
from llcuda_ffi.engine.plan import Row
from llcuda_ffi.engine.request import Request
from llcuda_ffi.engine.scheduler import Scheduler
from llcuda_ffi.engine.slot import Slot
from llcuda_ffi.errors import NoKvSlot
from llcuda_ffi.params import ContextParams
from llcuda_ffi.sampling_params import SamplingParams

N_VOCAB = 300
EOG = 0


def next_token(tokens: Sequence[int]) -> int:
    """The token that follows these; now and then the end token."""
    return crc32(np.array(tokens, np.int32).tobytes()) % N_VOCAB


def expected(prompt: Sequence[int], limit: int) -> list[int]:
    """What a request must generate."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < limit:
        tokens.append(next_token(tokens))
        if tokens[-1] == EOG:
            break
    return tokens[len(prompt) :]


class FakeVocab:
    """300 tokens; each writes a letter, token 0 ends."""

    n_tokens, eog_tokens = N_VOCAB, (EOG,)

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}
        self._eog = {token: token == EOG for token in range(N_VOCAB)}

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return b"" if token == EOG else bytes([97 + token % 26])

    def is_eog(self, token: int) -> bool:
        return token == EOG


class FakeMemory:
    """Which token each sequence holds at which position."""

    def __init__(self, n_seq: int, kind: MemoryKind, unified: bool) -> None:
        self.cells: list[dict[int, int]] = [{} for _ in range(n_seq)]
        self.kind, self.window, self.shares_cells, self.can_shift = kind, 0, unified, kind is MemoryKind.FULL

    def remove(self, seq: int, start: int = 0, stop: int | None = None) -> bool:
        cells = self.cells[seq]
        gone = [pos for pos in cells if pos >= start and (stop is None or pos < stop)]
        if self.kind is not MemoryKind.FULL and gone and len(gone) < len(cells):
            return False
        for pos in gone:
            del cells[pos]
        return True

    def copy(self, source: int, target: int, start: int = 0, stop: int | None = None) -> None:
        cells = self.cells[source]
        self.cells[target] = {p: t for p, t in cells.items() if p >= start and (stop is None or p < stop)}

    def shift(self, seq: int, delta: int, start: int = 0) -> None:
        self.cells[seq] = {pos + delta * (pos >= start): token for pos, token in self.cells[seq].items()}

    def clear(self, *, data: bool = True) -> None:
        for cells in self.cells:
            cells.clear()

    def positions(self, seq: int) -> tuple[int, int] | None:
        cells = self.cells[seq]
        return (min(cells), max(cells)) if cells else None

    def holds(self, seq: int, n: int) -> bool:
        return sorted(self.cells[seq]) == list(range(n))

    def tokens(self, seq: int) -> list[int]:
        """The tokens of a sequence in order."""
        return [token for _, token in sorted(self.cells[seq].items())]


class FakeContext:
    """What the scheduler needs of a context.

    Attributes:
        decodes: the (sequence, position, token) rows of every batch.
        fail: raised by the next decode.
    """

    def __init__(
        self,
        n_seq: int = 3,
        n_ctx_seq: int = 64,
        *,
        cells: int | None = None,
        n_batch: int = 32,
        n_ubatch: int = 16,
        kind: MemoryKind = MemoryKind.FULL,
    ) -> None:
        self.kv_unified, self.mixes_embeddings = cells is not None, False
        self.n_ctx = cells or n_seq * n_ctx_seq
        self.n_ctx_seq, self.n_seq_max, self.n_batch, self.n_ubatch = n_ctx_seq, n_seq, n_batch, n_ubatch
        self.n_vocab = N_VOCAB
        self.params = ContextParams(n_threads=1)
        self.flash_attn = self.closed = self.mixes_embeddings = False
        self.memory = FakeMemory(n_seq, kind, self.kv_unified)
        self.model = SimpleNamespace(
            vocab=FakeVocab(),
            is_recurrent=kind is MemoryKind.RECURRENT,
            is_hybrid=False,
            has_encoder=False,
            n_swa=0,
            moves_positions=False,
            placement=SimpleNamespace(on_gpu=True),
        )
        self.decodes: list[list[tuple[int, int, int]]] = []
        self.chosen: dict[int, int] = {}
        self.fail: BaseException | None = None
        self._lock = threading.Lock()

    def exclusive(self) -> AbstractContextManager[object]:
        """One thread at a time; a second call inside would wait for ever, so it is refused."""
        assert not self._lock.locked()
        return self._lock

    def decode_sound(self, batch: Batch) -> None:
        """Take in a batch, in `with exclusive()`; refuses what libllama would refuse or abort on."""
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        assert self._lock.locked()
        n = batch.n_tokens
        assert 0 < n <= self.n_batch
        held = sum(map(len, self.memory.cells))
        if held + n > self.n_ctx:
            raise NoKvSlot(f"{held} of {self.n_ctx} cells are taken, {n} are wanted")
        rows = list(zip(batch.seq[:n, 0].tolist(), batch.pos[:n].tolist(), batch.token[:n].tolist(), strict=True))
        self.chosen = {}
        for row, (seq, pos, token) in enumerate(rows):
            cells = self.memory.cells[seq]
            assert pos == (max(cells) + 1 if cells else 0), f"sequence {seq} goes on at {len(cells)}, not {pos}"
            assert pos < self.n_ctx_seq
            cells[pos] = token
            if batch.output[row]:
                self.chosen[row] = next_token(self.memory.tokens(seq))
        self.decodes.append(rows)


class FakeSelection:
    """Takes the token that the context says."""

    def __init__(self, context: FakeContext) -> None:
        self._context = context
        self.held: set[Request] = set()

    def prepare(self, slot: Slot, request: Request) -> None:
        self.held.add(request)

    def ahead(self, rows: Sequence[Row], batch: Batch, n_outputs: int) -> None:
        pass

    def read(self, n_outputs: int) -> bool:
        return True

    def sample(self) -> None:
        pass

    def token(self, row: int, request: Request) -> tuple[int, None]:
        return self._context.chosen[row], None

    def detach(self, slot: Slot) -> None:
        pass

    def release(self, slot: Slot, request: Request) -> None:
        self.held.discard(request)

    def drop(self, request: Request) -> None:
        self.held.discard(request)

    def close(self) -> None:
        self.held.clear()


def make_scheduler(context: FakeContext, **settings: Any) -> Scheduler:
    """A scheduler on a fake context."""
    return Scheduler(context, selection=FakeSelection(context), **settings)  # type: ignore[arg-type]


def make_loop(*contexts: FakeContext, **settings: Any) -> EngineLoop:
    """A loop over schedulers on fake contexts."""
    return EngineLoop([make_scheduler(context, **settings) for context in contexts])


def make_request(prompt: Sequence[int], limit: int = 6, *, stream: bool = False, **settings: Any) -> Request:
    """A greedy request of at most `limit` tokens."""
    params = SamplingParams(max_tokens=limit, temperature=0, **settings)
    tokens = np.array(prompt, np.int32)
    return Request(tokens, params, FakeVocab(), limit, 0, stream=stream)  # type: ignore[arg-type]
