"""The disk tier: kept sequences as files, which outlive the process and are shared by all on this machine.

A sequence is cut into chunks of tokens, each a file that is named by the hash of all tokens up to its end, so that
conversations share what they have in common and a longer one adds only what is new. What follows the last whole chunk,
with the window or the recurrent state there, is a file of its own: the end of a sequence, or a checkpoint in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.context import Context
from ..core.sequence_state import KVRows, SequenceState, StateLayout
from ..core.state_key import state_key
from ..errors import InvalidRequest
from .disk_store import DiskStore, disk_cache_folder

Tokens = npt.NDArray[np.int32]

CHUNK = 128  # tokens
_MOST_PENDING = 1 << 29  # bytes that wait to be written; what comes on top is not


@dataclass(frozen=True)
class SequenceCopy:
    """A sequence read from a context, to be written.

    Attributes:
        tokens: what it holds.
        data, partial_size: its state, and how much of that is its partial state.
        checkpoints: partial states after some of its beginnings.
    """

    tokens: Tokens
    data: memoryview
    partial_size: int
    checkpoints: Sequence[tuple[int, memoryview]]


class DiskCache:
    """Sequences of one context's model and settings on disk."""

    def __init__(self, context: Context, budget: int) -> None:
        """Open the user's folder.

        Raises:
            InvalidRequest: the folder is not this user's own.
        """
        self._store = DiskStore(disk_cache_folder(), budget)
        self._layout = StateLayout.of(context)
        state = context.model.path.stat()
        key = {**state_key(context), "size": state.st_size, "mtime_ns": state.st_mtime_ns, "chunk": CHUNK}
        self._group = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="llcuda_ffi-disk-cache")
        self._pending: dict[Future[None], int] = {}
        self._named: frozenset[str] = frozenset()
        self._lengths: set[int] = set()  # of the ends among them

    # --- reading ---

    def longest(self, tokens: Tokens) -> int:
        """How many of these tokens can be had."""
        chunks, ends = self._there(tokens)
        whole = len(chunks) * CHUNK if not self._layout.partial else 0
        return max([whole, *ends])

    def _there(self, tokens: Tokens) -> tuple[list[str], dict[int, str]]:
        """The files of the leading chunks that are there, and those that go on from them, by length."""
        names = self._store.names(self._group)
        if names is not self._named:
            self._named, self._lengths = names, {int(name.split("-")[1]) for name in names if name.startswith("end-")}
        chunks: list[str] = []
        ends = {}
        for n, digest in _digests(tokens, self._lengths):
            if n % CHUNK == 0 and self._layout.has_base:
                if f"kv-{n}-{digest}" not in names:
                    break
                chunks.append(f"kv-{n}-{digest}")
            if f"end-{n}-{digest}" in names:
                ends[n] = f"end-{n}-{digest}"
        return chunks, ends

    def load(self, tokens: Tokens) -> bytes | None:
        """The state of these tokens, as many as `longest` gave; None where it is not what it should be."""
        n = len(tokens)
        chunks, ends = self._there(tokens)
        names = chunks[: n // CHUNK] + ([ends[n]] if n in ends else [])
        found = [self._store.read(self._group, name) for name in names]
        contents = [content for content in found if content is not None]
        if not names or len(contents) < len(names):
            return None
        try:
            state = self._joined(contents, n in ends)
        except InvalidRequest:
            return None
        if state.base is not None and len(state.base) != n:
            return None
        self._store.touch(self._group, names)
        return state.to_bytes(self._layout.n_stream)

    def _joined(self, contents: Sequence[memoryview], has_end: bool) -> SequenceState:
        layout = self._layout
        head = bytes(contents[0][: layout.head])
        rows = [KVRows.parse(raw[layout.head :], layout) for raw in contents[: -1 if has_end else None]]
        window, recurrent = None, b""
        if has_end:
            last = contents[-1][layout.head :]
            size = int.from_bytes(last[:8], "little")
            inside, rest = last[8 : 8 + size], last[8 + size :]
            if size:
                partial = SequenceState.parse_partial(inside, layout)
                window, recurrent = partial.window, partial.recurrent
            if layout.has_base and len(rest):
                rows.append(KVRows.parse(rest, layout))
        return SequenceState(head, KVRows.join(rows) if layout.has_base else None, window, recurrent)

    # --- writing ---

    def holds(self, tokens: Tokens) -> bool:
        """Whether all of these tokens are there."""
        return len(tokens) in self._there(tokens)[1]

    def save(self, copy: SequenceCopy) -> None:
        """Write a sequence in another thread."""
        self._pending = {job: size for job, size in self._pending.items() if not job.done()}
        if sum(self._pending.values()) <= _MOST_PENDING:
            self._pending[self._writer.submit(self._write, copy)] = len(copy.data)

    def _write(self, copy: SequenceCopy) -> None:
        layout, tokens = self._layout, copy.tokens
        state = SequenceState.parse(copy.data, layout, copy.partial_size)
        digests = dict(_digests(tokens, {len(tokens), *(n for n, _ in copy.checkpoints)}))
        there = self._store.names(self._group)
        chunks = [f"kv-{n}-{digests[n]}" for n in range(CHUNK, len(tokens) + 1, CHUNK)]
        self._store.touch(self._group, chunks)  # before room is made: what this goes on from stays
        self._store.write(self._group, self._files(copy, state, digests, there))
        self._store.touch(self._group, [*chunks, f"end-{len(tokens)}-{digests[len(tokens)]}"])

    def _files(
        self, copy: SequenceCopy, state: SequenceState, digests: dict[int, str], there: frozenset[str]
    ) -> Iterator[tuple[str, Sequence[bytes]]]:
        base = state.base
        for n in range(CHUNK, len(copy.tokens) + 1, CHUNK):
            name = f"kv-{n}-{digests[n]}"
            if base is not None and name not in there:
                yield name, [state.head, *base.part(n - CHUNK, n).to_bytes(1)]
        ends = [(n, SequenceState.parse_partial(data, self._layout)) for n, data in copy.checkpoints]
        for n, partial in [*ends, (len(copy.tokens), state)]:
            inside = partial.partial_bytes(1) if self._layout.partial else b""
            rest = [] if base is None or n % CHUNK == 0 else base.part(n - n % CHUNK, n).to_bytes(1)
            yield f"end-{n}-{digests[n]}", [state.head, len(inside).to_bytes(8, "little"), inside, *rest]

    def usage(self) -> int:
        """Bytes of the folder, other models' and processes' included."""
        return self._store.usage().nbytes

    def close(self) -> None:
        """Wait until all is written."""
        self._writer.shutdown(wait=True)


def _digests(tokens: Tokens, lengths: set[int]) -> Iterator[tuple[int, str]]:
    """The hashes of the beginnings of these lengths, and of whole chunks, ascending."""
    digest, done = hashlib.sha256(), 0
    wanted = {n for n in lengths if 0 < n <= len(tokens)} | set(range(CHUNK, len(tokens) + 1, CHUNK))
    for n in sorted(wanted):
        digest.update(tokens[done:n].tobytes())
        done = n
        yield n, digest.copy().hexdigest()
