"""The memory of a context: its KV cache (or recurrent state), sequence by sequence."""

from __future__ import annotations

import enum
from typing import Any

from ..enums import RopeType
from ..errors import InvalidRequest, UnsupportedModel
from ..native.handle import Handle
from ..params import INT32_MAX, flag, integer


class MemoryKind(enum.Enum):
    """What a model's memory can forget.

    FULL: every token's K and V are held: any end of a sequence can be removed.
    WINDOW: some layers hold the last `Memory.window` tokens only: an end can be removed while its window is held.
    RECURRENT: a state that stands for all tokens so far: nothing but all of it can be removed.
    HYBRID: both attention and a recurrent state.
    """

    FULL = "full"
    WINDOW = "window"
    RECURRENT = "recurrent"
    HYBRID = "hybrid"


class Memory:
    """What a context remembers (llama_memory_*). Positions are token indices within a sequence, from 0.

    Every method raises InvalidRequest for a sequence id outside 0 to n_seq_max - 1 and for a bad position,
    ClosedError and ConcurrentUseError as the context does.

    Attributes:
        kind: what it can forget.
        window: tokens of the sliding attention window, 0 where there is none.
    """

    def __init__(
        self,
        context: Handle,
        lib: Any,
        pointer: Any,
        *,
        n_seq_max: int,
        shares_cells: bool,
        rope_type: RopeType,
        kind: MemoryKind,
        window: int,
    ) -> None:
        """`Context.memory` makes one.

        Args:
            context: what it belongs to, whose lock each call holds.
            lib: libllama's functions.
            pointer: llama_memory_t.
        """
        self._context, self._lib, self._memory = context, lib, pointer
        self._n_seq_max, self._shares_cells, self._rope_type = n_seq_max, shares_cells, rope_type
        self.kind, self.window = kind, window

    @property
    def shares_cells(self) -> bool:
        """Whether sequences share one buffer (kv_unified), so that a copy costs nothing."""
        return self._shares_cells

    def holds(self, seq_id: int, n: int) -> bool:
        """Whether a sequence is exactly the positions 0 to n - 1, with all that computing position n needs.

        libllama says True to removals that leave a hole before a sliding window: this asks what is there. Of a model
        with attention and a recurrent state only the last position can be asked.
        """
        held = self.positions(seq_id)
        if held is None or n <= 0:
            return held is None and n == 0
        low, high = held
        if high != n - 1:
            return False
        if self.kind in (MemoryKind.RECURRENT, MemoryKind.HYBRID):
            return True
        return low <= max(0, n - self.window + 1) if self.window else low == 0

    def _seq(self, seq_id: int) -> int:
        return integer("a sequence id", seq_id, 0, self._n_seq_max - 1)

    @property
    def _held(self) -> Any:
        """llama_memory_t, as long as the context is open."""
        self._context.pointer  # noqa: B018 - raises when it is closed
        return self._memory

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        start = integer("start", start, 0, INT32_MAX)
        return start, -1 if stop is None else integer("stop", stop, start, INT32_MAX)

    def remove(self, seq_id: int, start: int = 0, stop: int | None = None) -> bool:
        """Forget positions start to stop - 1 of a sequence; by default the whole sequence.

        Returns:
            False where the model cannot forget a part (recurrent state): nothing was changed. True does not say that
            what is left can be continued: a sliding window may be gone (`holds`).
        """
        with self._context.exclusive():
            seq = self._seq(seq_id)
            first, last = self._range(start, stop)
            return bool(self._lib.llama_memory_seq_rm(self._held, seq, first, last))

    def copy(self, source: int, target: int, start: int = 0, stop: int | None = None) -> None:
        """Let `target` share positions start to stop - 1 of `source` (cells, not copies, with kv_unified).

        Without kv_unified the target's own content is replaced.

        Raises:
            InvalidRequest: a part of a sequence, in a context without kv_unified.
        """
        with self._context.exclusive():
            a, b = self._seq(source), self._seq(target)
            first, last = self._range(start, stop)
            if a == b:
                return
            if not self._shares_cells:
                whole = first <= max(0, self._lib.llama_memory_seq_pos_min(self._held, a)) and (
                    last < 0 or last > self._lib.llama_memory_seq_pos_max(self._held, a)
                )
                if not whole:
                    raise InvalidRequest(
                        "a part of a sequence can be copied only in a context made with kv_unified=True: "
                        "copy the whole sequence, then remove what is too much"
                    )
                first, last = 0, -1
            self._lib.llama_memory_seq_cp(self._held, a, b, first, last)

    def keep(self, seq_id: int) -> None:
        """Forget every sequence but this one."""
        with self._context.exclusive():
            seq = self._seq(seq_id)
            self._lib.llama_memory_seq_keep(self._held, seq)

    def shift(self, seq_id: int, delta: int, start: int = 0, stop: int | None = None) -> None:
        """Add `delta` to the positions start to stop - 1 of a sequence; cells that get below 0 are forgotten.

        Raises:
            UnsupportedModel: the model's positions cannot be shifted (`can_shift`).
        """
        with self._context.exclusive():
            seq = self._seq(seq_id)
            first, last = self._range(start, stop)
            delta = integer("delta", delta, -INT32_MAX, INT32_MAX)
            self._shiftable("shifted")
            highest = self._lib.llama_memory_seq_pos_max(self._held, seq)
            if delta > 0 and highest + delta > INT32_MAX:
                raise InvalidRequest(f"a shift by {delta} moves a position beyond int32")
            if delta:
                self._lib.llama_memory_seq_add(self._held, seq, first, last, delta)

    def divide(self, seq_id: int, divisor: int, start: int = 0, stop: int | None = None) -> None:
        """Divide the positions start to stop - 1 of a sequence by `divisor`, above 1 (self-extend).

        Raises:
            UnsupportedModel: the model's positions cannot be shifted (`can_shift`).
        """
        with self._context.exclusive():
            seq = self._seq(seq_id)
            first, last = self._range(start, stop)
            divisor = integer("divisor", divisor, 1, INT32_MAX)
            self._shiftable("divided")
            if divisor > 1:
                self._lib.llama_memory_seq_div(self._held, seq, first, last, divisor)

    def _shiftable(self, what: str) -> None:
        if not self._can_shift():
            raise UnsupportedModel(f"positions of this model cannot be {what} (can_shift is False)")

    def clear(self, *, data: bool = True) -> None:
        """Forget everything; `data` also zeroes the buffers."""
        with self._context.exclusive():
            self._lib.llama_memory_clear(self._held, flag("data", data))

    def positions(self, seq_id: int) -> tuple[int, int] | None:
        """The lowest and highest position held of a sequence, or None when it is empty."""
        with self._context.exclusive():
            seq = self._seq(seq_id)
            high = self._lib.llama_memory_seq_pos_max(self._held, seq)
            return None if high < 0 else (self._lib.llama_memory_seq_pos_min(self._held, seq), high)

    def _can_shift(self) -> bool:
        if self._rope_type in (RopeType.MROPE, RopeType.IMROPE):
            return False
        if self.kind is MemoryKind.HYBRID and self.window:
            return False  # libllama aborts where every attention layer slides (LFM2 with a window)
        return bool(self._lib.llama_memory_can_shift(self._held))

    @property
    def can_shift(self) -> bool:
        """Whether `shift` and `divide` work for this model and cache."""
        with self._context.exclusive():
            return self._can_shift()
