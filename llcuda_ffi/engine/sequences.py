"""The sequences of a context's memory, changed only as far as the memory proves that the change is true."""

from __future__ import annotations

from collections.abc import Callable

from ..core.context import Context
from ..core.memory import MemoryKind
from ..core.state import read_sequence, write_sequence
from ..errors import BackendFailure
from .media import MediaPrompt


class Sequences:
    """What the slots' sequences hold.

    libllama's answers are not enough: a removal before a sliding window "succeeds", a restored state holds only its
    window, a recurrent state refuses. After each change this asks which positions are there (`Memory.holds`).

    Attributes:
        kind: what the memory can forget.
        window: tokens of the sliding window, 0 where there is none.
        shared: whether sequences share cells, so that a copy costs nothing.
        windowed: whether the window's cache holds little more than the window.
    """

    def __init__(self, context: Context) -> None:
        memory = context.memory
        assert memory is not None
        self._context, self._memory = context, memory
        self.kind, self.window = memory.kind, memory.window
        self.shared = context.kv_unified or context.n_seq_max == 1
        self.windowed = self.window > 0 and not context.params.swa_full
        self._sources: set[int] = set()  # of copies that the next decode makes
        self._targets: set[int] = set()
        self._joined: set[int] = set()  # may have cells that are another one's too
        self._prompts: dict[int, MediaPrompt] = {}

    def follow(self, seq: int, prompt: MediaPrompt | None) -> None:
        """A sequence begins with this prompt's tokens: their positions are what the prompt says (M-RoPE)."""
        if prompt is None:
            self._prompts.pop(seq, None)
        else:
            self._prompts[seq] = prompt

    def _position(self, seq: int, n: int) -> int:
        """The position after the first n tokens of a sequence."""
        prompt = self._prompts.get(seq)
        return n if prompt is None else n + prompt.moved(n)

    @property
    def rolls_back(self) -> bool:
        """Whether an end of a sequence can be removed."""
        return self.kind in (MemoryKind.FULL, MemoryKind.WINDOW)

    def lowest(self, seq: int) -> int:
        """The lowest position that a sequence (its window) holds; 0 when it is empty."""
        held = self._memory.positions(seq)
        return held[0] if held else 0

    def cut(self, seq: int, n: int) -> bool:
        """Forget all but the first n tokens. False: the memory does not hold those; nothing is left then."""
        end = self._position(seq, n)
        if end > 0 and self._memory.remove(seq, end) and self._memory.holds(seq, end):
            return True
        self.clear(seq)
        return False

    def clear(self, seq: int) -> None:
        """Forget all of a sequence."""
        self._memory.remove(seq)
        self._prompts.pop(seq, None)
        self._joined.discard(seq)

    def purge(self) -> None:
        """Forget all sequences and overwrite their cells with zeros."""
        self._memory.clear(data=True)
        self._prompts.clear()

    def shift(self, seq: int, keep: int, discard: int, make_room: Callable[[], bool]) -> bool:
        """Forget the tokens keep to keep + discard - 1 and move what follows them down.

        A cell has one position for all sequences that share it. So what is moved gets cells of its own first.

        Args:
            make_room: frees cells; False: there are none to be freed.

        Returns:
            False: there was no room for cells of its own, and nothing is left of the sequence.
        """
        if seq in self._joined:
            data = self.read(seq)
            self.clear(seq)
            while not self.write(seq, data):
                if not make_room():
                    return False
        self._memory.remove(seq, keep, keep + discard)
        self._memory.shift(seq, -discard, keep + discard)
        return True

    # --- copies: without shared cells libllama moves their data only in the next decode ---

    def copy(self, source: int, target: int, n: int) -> bool:
        """Give `target` the first n tokens of `source`. Where only all of it can be copied, `cut` the rest."""
        if self.shared:
            self._joined |= {source, target}
        if self.shared and self.rolls_back:
            self._memory.copy(source, target, 0, self._position(target, n))
            return self.cut(target, n)
        self._memory.copy(source, target)
        if not self.shared and self.kind is not MemoryKind.RECURRENT:
            self._sources.add(source)
            self._targets.add(target)
        return True

    def copying(self, *seqs: int) -> bool:
        """Whether the data of one of these is still to be copied: before a decode neither of the two can be replaced,
        nor the copy be read."""
        return not (self._sources.isdisjoint(seqs) and self._targets.isdisjoint(seqs))

    def decoded(self) -> None:
        """A decode has begun: the copies are done."""
        self._sources.clear()
        self._targets.clear()

    # --- states ---

    def read(self, seq: int, *, partial: bool = False) -> memoryview:
        """The state of a sequence; `partial`: only what cannot be rolled back (recurrent state, window)."""
        assert seq not in self._targets
        return read_sequence(self._context, seq, partial_only=partial)

    def write(self, seq: int, data: bytes | bytearray | memoryview, *, partial: bool = False) -> bool:
        """Put a state back. False: there was no room, and nothing is left of the sequence."""
        assert not self.copying(seq) or (partial and not self.window)  # recurrent rows are copied at once
        try:
            write_sequence(self._context, seq, data, partial_only=partial)
        except BackendFailure:
            self.clear(seq)
            return False
        return True
