"""The memory of a context: its KV cache (or recurrent state), sequence by sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..enums import RopeType
from ..errors import InvalidRequest, UnsupportedModel
from ..params import INT32_MAX, integer

if TYPE_CHECKING:
    from .context import Context


class Memory:
    """What a context remembers (llama_memory_*). Positions are token indices within a sequence, from 0.

    Every method raises InvalidRequest for a sequence id outside 0 to n_seq_max - 1 and for a bad position,
    ClosedError and ConcurrentUseError as the context does.
    """

    def __init__(self, context: Context, pointer: Any) -> None:
        self._context = context
        self._memory = pointer
        self._lib = context._lib

    @property
    def shares_cells(self) -> bool:
        """Whether sequences share one buffer (kv_unified), so that a copy costs nothing."""
        return self._context.kv_unified

    def _seq(self, seq_id: int) -> int:
        return integer("a sequence id", seq_id, 0, self._context.n_seq_max - 1)

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        start = integer("start", start, 0, INT32_MAX)
        return start, -1 if stop is None else integer("stop", stop, start, INT32_MAX)

    def remove(self, seq_id: int, start: int = 0, stop: int | None = None) -> bool:
        """Forget positions start to stop - 1 of a sequence; by default the whole sequence.

        Returns:
            False where the model cannot forget a part (recurrent state): nothing was changed.
        """
        with self._context._exclusive():
            seq = self._seq(seq_id)
            first, last = self._range(start, stop)
            self._context._ptr  # noqa: B018 - raises when closed
            return bool(self._lib.llama_memory_seq_rm(self._memory, seq, first, last))

    def copy(self, source: int, target: int, start: int = 0, stop: int | None = None) -> None:
        """Let `target` share positions start to stop - 1 of `source` (cells, not copies, with kv_unified).

        Without kv_unified the target's own content is replaced.

        Raises:
            InvalidRequest: a part of a sequence, in a context without kv_unified.
        """
        with self._context._exclusive():
            a, b = self._seq(source), self._seq(target)
            first, last = self._range(start, stop)
            self._context._ptr  # noqa: B018
            if a == b:
                return
            if not self._context.kv_unified:
                whole = first <= max(0, self._lib.llama_memory_seq_pos_min(self._memory, a)) and (
                    last < 0 or last > self._lib.llama_memory_seq_pos_max(self._memory, a)
                )
                if not whole:
                    raise InvalidRequest(
                        "a part of a sequence can be copied only in a context made with kv_unified=True: "
                        "copy the whole sequence, then remove what is too much"
                    )
                first, last = 0, -1
            self._lib.llama_memory_seq_cp(self._memory, a, b, first, last)

    def keep(self, seq_id: int) -> None:
        """Forget every sequence but this one."""
        with self._context._exclusive():
            seq = self._seq(seq_id)
            self._context._ptr  # noqa: B018
            self._lib.llama_memory_seq_keep(self._memory, seq)

    def shift(self, seq_id: int, delta: int, start: int = 0, stop: int | None = None) -> None:
        """Add `delta` to the positions start to stop - 1 of a sequence; cells that get below 0 are forgotten.

        Raises:
            UnsupportedModel: the model's positions cannot be shifted (`can_shift`).
        """
        with self._context._exclusive():
            seq = self._seq(seq_id)
            first, last = self._range(start, stop)
            delta = integer("delta", delta, -INT32_MAX, INT32_MAX)
            self._shiftable("shifted")
            highest = self._lib.llama_memory_seq_pos_max(self._memory, seq)
            if delta > 0 and highest + delta > INT32_MAX:
                raise InvalidRequest(f"a shift by {delta} moves a position beyond int32")
            if delta:
                self._lib.llama_memory_seq_add(self._memory, seq, first, last, delta)

    def divide(self, seq_id: int, divisor: int, start: int = 0, stop: int | None = None) -> None:
        """Divide the positions start to stop - 1 of a sequence by `divisor`, above 1 (self-extend).

        Raises:
            UnsupportedModel: the model's positions cannot be shifted (`can_shift`).
        """
        with self._context._exclusive():
            seq = self._seq(seq_id)
            first, last = self._range(start, stop)
            divisor = integer("divisor", divisor, 1, INT32_MAX)
            self._shiftable("divided")
            if divisor > 1:
                self._lib.llama_memory_seq_div(self._memory, seq, first, last, divisor)

    def _shiftable(self, what: str) -> None:
        if not self._can_shift():
            raise UnsupportedModel(f"positions of this model cannot be {what} (can_shift is False)")

    def clear(self, *, data: bool = True) -> None:
        """Forget everything; `data` also zeroes the buffers."""
        with self._context._exclusive():
            self._context._ptr  # noqa: B018
            self._lib.llama_memory_clear(self._memory, data)

    def positions(self, seq_id: int) -> tuple[int, int] | None:
        """The lowest and highest position held of a sequence, or None when it is empty."""
        with self._context._exclusive():
            seq = self._seq(seq_id)
            self._context._ptr  # noqa: B018
            high = self._lib.llama_memory_seq_pos_max(self._memory, seq)
            return None if high < 0 else (self._lib.llama_memory_seq_pos_min(self._memory, seq), high)

    def _can_shift(self) -> bool:
        self._context._ptr  # noqa: B018
        if self._context.model.rope_type in (RopeType.MROPE, RopeType.IMROPE):
            return False
        return bool(self._lib.llama_memory_can_shift(self._memory))

    @property
    def can_shift(self) -> bool:
        """Whether `shift` and `divide` work for this model and cache."""
        with self._context._exclusive():
            return self._can_shift()
