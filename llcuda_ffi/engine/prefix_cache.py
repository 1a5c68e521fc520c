"""The prefix cache: which slot a request gets, and what it need not compute again.

Finished requests leave their tokens in the KV cache of their slot. A new request takes the idle slot whose tokens it
continues; or, where another sequence, idle or running, shares a longer beginning with it, that beginning is copied
to a slot of its own. Kept tokens are forgotten least recently used first, when their slot is needed; with a host
tier they stay in ordinary memory, up to a budget, and come back when a request continues them.

A sliding window or a recurrent state cannot go back to where two prompts part. Such models go on from a checkpoint: a
small state kept from there (see `checkpoints`). Whatever is reused is proved by what the memory then holds; what is not
proved is computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

from ..core.adapter import control_vector
from ..core.context import Context
from ..core.memory import MemoryKind
from ..core.state import SavedState, checkpoint_data, restore_state, saved_checkpoint, state_size
from ..errors import BackendFailure, InvalidRequest
from .adapter_turns import AdapterTurns
from .checkpoints import SPACING, Checkpoints, Tokens, spacing, wanted_positions
from .disk_cache import DiskCache, SequenceCopy
from .host_cache import HostCache
from .media import MediaPrompt
from .prefix_tree import SavedSequence, common_prefix
from .request import Adapters, Request
from .reuse import MIN_COPY, Reuse, ReuseSearch
from .sequences import Sequences
from .slot import Slot

_PLAIN: Hashable = ((), "")  # the key without adapters and control vector: only such sequences go to the disk


class PrefixCache:
    """Places requests in slots, and says what finished ones leave there.

    Attributes:
        checkpoints, host: the states kept in ordinary memory.
        reused: tokens that were not computed, by the tier that they came from.
    """

    def __init__(
        self,
        context: Context,
        slots: Sequence[Slot],
        turns: AdapterTurns,
        *,
        host_bytes: int = 0,
        checkpoint_bytes: int = 0,
        disk: DiskCache | None = None,
    ) -> None:
        """Bind to a context.

        Args:
            host_bytes: how much memory evicted sequences may take; 0 forgets them.
            checkpoint_bytes: how much memory checkpoints may take; 0 makes none.
            disk: keeps sequences beyond this process, or None.
        """
        self._context, self._slots, self._turns = context, slots, turns
        self._sequences = Sequences(context)
        kind = self._sequences.kind
        # a full window cache can go back by itself, except to what a restore or other sequences' cells left out
        needed = not self._sequences.rolls_back or (
            kind is MemoryKind.WINDOW
            and (self._sequences.windowed or context.kv_unified or host_bytes > 0 or disk is not None)
        )
        self.checkpoints = Checkpoints(checkpoint_bytes if needed else 0)
        self.host = HostCache(0 if kind is MemoryKind.RECURRENT else host_bytes)
        self._disk = disk
        self._search = ReuseSearch(context, self._sequences, slots, self.host)
        self._unsaved: set[Slot] = set()  # idle slots whose tokens are not on the disk yet
        self.reused = dict.fromkeys(("kv", "checkpoint", "host", "disk"), 0)
        # cross attention belongs to the last text that was encoded
        self._reuses = not context.model.has_encoder

    def key(self, adapters: Adapters | None = None) -> Hashable:
        """What a request's tokens are computed with now: a sequence computed otherwise is no use to it."""
        return self._turns.base if adapters is None else adapters, control_vector(self._context)

    def shared(self, request: Request) -> int:
        """The longest beginning of its prompt that a slot keeps; from any thread, so it may be out of date."""
        if not request.params.prefix_cache:
            return 0
        key = self.key(request.adapters)
        return max(
            (common_prefix(slot.cached_tokens, request.prompt) for slot in self._slots if slot.key == key), default=0
        )

    # --- a request comes ---

    def place(self, request: Request, tokens: Tokens, *, reuse: bool) -> tuple[Slot, int] | None:
        """Choose an idle slot, of which there is one, and bring what can be reused into it.

        Args:
            tokens: what the request needs in the cache.
            reuse: whether kept tokens may be used.

        Returns:
            the slot, and how many tokens its sequence now holds; at least one token is left to compute. None: what it
            needs is part of a copy that the next decode makes; ask again after that.
        """
        key = self.key(request.adapters)
        reuse = reuse and self._reuses
        idle = [slot for slot in self._slots if slot.request is None]
        oldest = min(idle, key=lambda slot: (len(slot.cached_tokens) > 0, slot.used))
        known = self.checkpoints.known(key, tokens[:-1]) if reuse else []
        ways: list[Reuse] = []
        junction = 0
        if self._reuses:
            disk = self._disk if key == _PLAIN else None
            ways, junction = self._search.ways(request, key, tokens, known, disk, reuse=reuse)
        slot, n = oldest, 0
        while ways:
            way = ways.pop(0)
            target = self._target(way, idle, oldest)
            if not self._worth(way, target):
                continue
            if self._waits(way, target):
                if any(slot.request is not None for slot in self._slots):
                    return None
                continue
            if self._bring(way, target, key, tokens, request.media):
                slot, n = target, way.n
                self.reused[way.tier] += n
                break
            ways = [other for other in ways if other.source is not target]  # what it held is gone
        if not n:
            self._evict(slot)
            self._sequences.follow(slot.index, request.media)
        slot.key, slot.cached_tokens = key, tokens[:n]
        slot.wanted, slot.marked = [], n
        slot.marks = reuse and self.checkpoints.enabled
        if slot.marks:
            slot.wanted = wanted_positions(len(tokens), n, junction, known)
        return slot, n

    def _target(self, way: Reuse, idle: Sequence[Slot], oldest: Slot) -> Slot:
        """The source itself, or another slot: a long sequence that shares only its beginning is worth keeping."""
        source = way.source
        if source is None or source is oldest or source.request is not None:
            return oldest
        return source if len(idle) == 1 or 2 * way.n >= len(source.cached_tokens) else oldest

    def _worth(self, way: Reuse, target: Slot) -> bool:
        """Whether a copy is cheaper than computing."""
        return way.source in (None, target) or self._sequences.shared or way.n >= MIN_COPY

    def _by_state(self, way: Reuse) -> bool:
        """Whether a copy must go through the host: a copied small window pins its cells; a copy yet to be made would
        overwrite the window of a checkpoint."""
        sequences = self._sequences
        return sequences.window > 0 and (sequences.windowed if sequences.shared else way.checkpoint)

    def _waits(self, way: Reuse, target: Slot) -> bool:
        """Whether data would be read or replaced that the next decode still has to copy."""
        copies = way.source not in (None, target) and not way.checkpoint and not self._by_state(way)
        if copies:
            return self._saves and self._sequences.copying(target.index)
        return self._sequences.copying(target.index, *(() if way.source is None else (way.source.index,)))

    def _bring(self, way: Reuse, target: Slot, key: Hashable, tokens: Tokens, media: MediaPrompt | None) -> bool:
        """Make the target hold the first `way.n` tokens. False: it could not be proved, and the target is empty."""
        sequences, seq, n = self._sequences, target.index, way.n
        state = self.checkpoints.get(key, tokens[:n]) if way.checkpoint else None
        if way.source is target:
            if n == len(target.cached_tokens) and not way.checkpoint:
                self._mark(target)
            if 2 * n < len(target.cached_tokens):
                self._save(target)
            done = True
            sequences.follow(seq, media)
        else:
            if way.saved is not None:
                self.host.touch(way.saved)
            self._evict(target)
            sequences.follow(seq, media)
            if way.saved is not None:
                done = sequences.write(seq, way.saved.data)
            elif way.disk:
                done = self._read_disk(seq, tokens[: way.disk])
            elif way.source is None:
                done = True
            elif self._by_state(way):
                done = sequences.write(seq, sequences.read(way.source.index))
            else:
                done = sequences.copy(way.source.index, seq, n)
        if done and way.checkpoint:
            done = state is not None and sequences.write(seq, state, partial=True)
        done = done and sequences.cut(seq, n)
        if not done:
            self.forget(target)
        return done

    def _mark(self, slot: Slot) -> None:
        """Keep a checkpoint of the end of an idle slot's tokens, before a request goes on from there: where an answer
        ended, the next message may be given anew."""
        if self.checkpoints.enabled and not self._sequences.copying(slot.index):
            known = self.checkpoints.known(slot.key, slot.cached_tokens)
            if len(slot.cached_tokens) - (known[-1] if known else 0) >= SPACING:
                self.checkpoints.add(slot.key, slot.cached_tokens, self._sequences.read(slot.index, partial=True))

    def _read_disk(self, seq: int, tokens: Tokens) -> bool:
        data = None if self._disk is None else self._disk.load(tokens)
        return data is not None and self._sequences.write(seq, data)

    # --- while it runs ---

    def prompted(self, slot: Slot) -> None:
        """A part of a slot's prompt was computed: keep the state where a checkpoint is wanted, or was not for long."""
        if not slot.marks:
            return
        n, seq = slot.n_past, slot.index
        if slot.wanted and n == slot.wanted[0]:
            slot.wanted.pop(0)
        elif n - slot.marked < SPACING or n - slot.marked < spacing(state_size(self._context, seq, partial_only=True)):
            return
        slot.marked = n
        self.checkpoints.add(slot.key, slot.pending_tokens[:n], self._sequences.read(seq, partial=True))

    def before_drafts(self, slots: Iterable[Slot]) -> None:
        """Before a batch that verifies drafts: keep the states of memories that cannot be rolled back."""
        if not self._sequences.rolls_back:
            for slot in slots:
                slot.before = slot.n_past, self._sequences.read(slot.index, partial=True)

    def reject(self, slot: Slot, request: Request) -> bool:
        """Forget the drafted tokens beyond `slot.n_past`; where that means to go back farther, what was accepted since
        becomes `slot.run`, to be computed again with the next batch. False: nothing is left.
        """
        if slot.before is None:
            return self._sequences.cut(slot.index, slot.n_past)
        n = self._go_back(slot)
        slot.run = request.tokens()[n : slot.n_past].tolist()
        slot.n_past = n
        return n > 0

    def _go_back(self, slot: Slot) -> int:
        """Back to before the drafts; returns how many tokens are held."""
        assert slot.before is not None
        (n, state), slot.before = slot.before, None
        return n if self._sequences.write(slot.index, state, partial=True) and self._sequences.cut(slot.index, n) else 0

    def shift(self, slot: Slot, keep: int, discard: int) -> bool:
        """Forget the tokens keep to keep + discard - 1 of a running slot: those that follow move down. False: there was
        no room for that, and nothing is left."""
        slot.cached_tokens = slot.cached_tokens[:keep]
        return self._sequences.shift(slot.index, keep, discard, self.make_room)

    def decoded(self) -> None:
        """A decode has begun."""
        self._sequences.decoded()

    # --- a request ends ---

    def keep(self, slot: Slot, request: Request, tokens: Tokens) -> None:
        """A slot whose request ended keeps these tokens, as far as the memory holds them."""
        if slot.before is not None and slot.before[0] < len(tokens):
            tokens = tokens[: self._go_back(slot)]
        slot.before = None
        if self._reuses and slot.key == self.key(request.adapters) and self._sequences.cut(slot.index, len(tokens)):
            slot.cached_tokens = tokens
            if self._disk is not None and slot.key == _PLAIN and len(tokens) >= MIN_COPY and (tokens >= 0).all():
                self._unsaved.add(slot)
        else:
            self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """A slot holds nothing any more."""
        self._sequences.clear(slot.index)
        self._unsaved.discard(slot)
        slot.forget()

    def make_room(self) -> bool:
        """Empty the idle slot that was used longest ago; returns whether there was one."""
        kept = [slot for slot in self._slots if slot.request is None and len(slot.cached_tokens)]
        if kept:
            self._evict(min(kept, key=lambda slot: slot.used))
        return bool(kept)

    @property
    def _saves(self) -> bool:
        """Whether evicted sequences are saved."""
        recurrent = self._sequences.kind is MemoryKind.RECURRENT
        return self.host.budget > 0 or self._disk is not None or (recurrent and self.checkpoints.enabled)

    def _evict(self, slot: Slot) -> None:
        self._save(slot)
        self.forget(slot)

    def _save(self, slot: Slot) -> None:
        """Keep a copy of an idle slot's sequence, in memory and on disk, where the budgets allow."""
        sequences, seq, kept = self._sequences, slot.index, slot.cached_tokens
        if not self._saves or len(kept) < MIN_COPY or sequences.copying(seq):
            return
        if slot in self._unsaved:
            self._write_disk(slot)
        if sequences.kind is MemoryKind.RECURRENT:
            self.checkpoints.add(slot.key, kept, sequences.read(seq, partial=True))
        elif (
            self.host.budget
            and not self.host.holds(slot.key, kept)
            and state_size(self._context, seq) <= self.host.budget
        ):
            self.host.add(SavedSequence(slot.key, kept, sequences.read(seq)))

    def write_disk(self) -> None:
        """Hand what idle slots keep to the disk tier, while there is nothing to compute."""
        for slot in list(self._unsaved):
            if not self._sequences.copying(slot.index):
                self._write_disk(slot)

    def _write_disk(self, slot: Slot) -> None:
        self._unsaved.discard(slot)
        disk, tokens = self._disk, slot.cached_tokens
        if disk is None or disk.holds(tokens):
            return
        known = [(n, self.checkpoints.get(slot.key, tokens[:n])) for n in self.checkpoints.known(slot.key, tokens)]
        disk.save(
            SequenceCopy(
                tokens,
                self._sequences.read(slot.index),
                state_size(self._context, slot.index, partial_only=True),
                [(n, data) for n, data in known if data is not None and n < len(tokens)],
            )
        )

    @property
    def unsaved(self) -> bool:
        """Whether `write_disk` has something to do."""
        return bool(self._unsaved)

    def close(self) -> None:
        """Write what is not on the disk yet, and wait for it; free what is kept in ordinary memory."""
        if self._disk is not None:
            self.write_disk()
            self._disk.close()
        self.host.clear()
        self.checkpoints.clear()

    def clear(self) -> None:
        """Forget what idle slots, checkpoints and the host tier keep."""
        self.host.clear()
        self.checkpoints.clear()
        for slot in self._slots:
            if slot.request is None and len(slot.cached_tokens):
                self.forget(slot)

    def purge(self) -> None:
        """Overwrite all that the memory holds, and forget what was read from it."""
        self.host.clear()
        self.checkpoints.clear()
        self._sequences.purge()
        self._unsaved.clear()
        for slot in self._slots:
            slot.forget()

    # --- kept prefixes in files ---

    def kept(self) -> Iterator[Slot]:
        """The idle slots whose tokens were computed as they would be now, without a request's own adapters or images:
        what an image became hangs on the projector."""
        key, sequences = self.key(), self._sequences
        for slot in self._slots:
            idle = slot.request is None and len(slot.cached_tokens) and slot.key == key
            if idle and not sequences.copying(slot.index) and (slot.cached_tokens >= 0).all():
                yield slot

    def saved_checkpoints(self, tokens: Tokens) -> list[SavedState]:
        """The checkpoints of these tokens, computed as they would be now."""
        key, found = self.key(), []
        for n in self.checkpoints.known(key, tokens):
            data = self.checkpoints.get(key, tokens[:n])
            if data is not None:
                found.append(saved_checkpoint(self._context, tokens[:n], data))
        return found

    def adopt_checkpoint(self, state: SavedState) -> None:
        """Keep a saved checkpoint.

        Raises:
            InvalidRequest: it was computed otherwise.
        """
        self.checkpoints.add(self.key(), state.tokens, memoryview(checkpoint_data(self._context, state)))

    def adopt(self, slot: Slot, state: SavedState) -> int:
        """Put a saved sequence into an idle slot; returns how many tokens it now keeps of it.

        Raises:
            InvalidRequest: the state was computed otherwise, or is not what it says.
            BackendFailure: libllama could not restore it.
        """
        self.forget(slot)
        try:
            tokens = restore_state(self._context, state, slot.index)
        except BackendFailure:
            self.forget(slot)
            raise
        slot.key, slot.cached_tokens = self.key(), tokens
        if not self._sequences.cut(slot.index, len(tokens)):
            self.forget(slot)
            raise InvalidRequest(f"the saved state does not hold the {len(tokens)} tokens that it names")
        return len(tokens)
