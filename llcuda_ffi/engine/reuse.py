"""What of a prompt need not be computed: every place that holds its beginning, and how far each can be gone on from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ..core.context import Context
from ..core.memory import MemoryKind
from ..core.model import Model
from ..enums import GGMLType
from .checkpoints import Tokens
from .disk_cache import DiskCache
from .host_cache import HostCache
from .prefix_tree import SavedSequence, common_prefix
from .request import Request
from .sequences import Sequences
from .slot import Slot

# a copy between sequences without unified KV moves the whole stream: below this it costs more than computing
MIN_COPY = 64


@dataclass(frozen=True, slots=True)
class Reuse:
    """A way to have the first n tokens without computing them.

    Attributes:
        source: the slot that holds them, or None.
        saved: the saved sequence that holds them, or None.
        disk: how many are read from the disk; 0: none.
        checkpoint: whether the state after them comes from a checkpoint.
    """

    n: int
    source: Slot | None = None
    saved: SavedSequence | None = None
    checkpoint: bool = False
    disk: int = 0

    @property
    def tier(self) -> str:
        """Where they come from: "kv", "checkpoint", "host" or "disk"."""
        if self.source is not None:
            return "checkpoint" if self.checkpoint else "kv"
        return "disk" if self.disk else "host" if self.saved is not None else "checkpoint"

    def rank(self) -> tuple[int, bool]:
        """More tokens first; of equal ones an idle slot: that needs no copy."""
        return self.n, self.source is not None and self.source.request is None


class AttentionTile:
    """How many tokens of a prompt are worth computing together.

    Flash attention on the CPU computes 64 tokens of a sequence in a tile, and fewer one by one, each at four times the
    cost. Over a long cache it is faster to compute some tokens of the beginning again than to have a few less.
    """

    ROWS = 64
    _DEARER = 4.5  # a token's attention without a tile; measured with libllama of v0.5.0 and v0.6.0

    def __init__(self, context: Context) -> None:
        model, params = context.model, context.params
        tiles = (
            context.flash_attn
            and model.n_swa == 0  # a window is short
            and not model.placement.on_gpu
            and params.type_k == params.type_v
            and params.type_k in (GGMLType.F16, GGMLType.F32)
            and model.library.profile.has("model_params.load_mode")  # b7698 has no tiles
        )
        self._cells = _cells(context.model) if tiles else 0

    def reused(self, n: int, total: int, *, beside: bool) -> int:
        """How many of n tokens that are kept to go on from, of a prompt of `total`.

        Args:
            beside: others are computed: libllama takes a token of theirs and one of this sequence first.
        """
        rest, rows = total - n, self.ROWS + beside
        if not self._cells or rest >= rows or total < rows:
            return n
        share = n / self._cells
        return total - rows if rest * (1 + share) > rows * (1 + share / self._DEARER) else n


def _cells(model: Model) -> int:
    """How many cells cost a token about as much without tiles as the rest of the model: as many as it is wide, fewer
    where its heads together are wider (MLA)."""
    width, heads = model.n_embd, max(1, model.n_head)
    sizes = [model.metadata.get(f"{model.architecture}.attention.{name}_length") for name in ("key", "value")]
    return max(1, 2 * width * width // sum(heads * int(size or width // heads) for size in sizes))


class ReuseSearch:
    """Looks through the tiers of one context."""

    def __init__(self, context: Context, sequences: Sequences, slots: Sequence[Slot], host: HostCache) -> None:
        self._sequences, self._slots, self._host = sequences, slots, host
        self._tile = AttentionTile(context)

    def ways(
        self,
        request: Request,
        key: Hashable,
        tokens: Tokens,
        known: Sequence[int],
        disk: DiskCache | None,
        *,
        reuse: bool,
    ) -> tuple[list[Reuse], int]:
        """The ways to reuse something, the best first; and the longest beginning seen before, reusable or not."""
        most, media = len(tokens) - 1, request.media
        cut = int if media is None else media.cut
        ways, junction = [], 0
        for slot in self._slots:
            # n completions of one prompt share it even where the cache is off
            if slot.key != key if reuse else slot.request is None or slot.request is not request.place.group:
                continue
            shared = cut(min(common_prefix(slot.cached_tokens, tokens), most))
            if shared:
                held = len(slot.cached_tokens) if slot.request is None else -1
                low = self._sequences.lowest(slot.index) if self._sequences.window else 0
                n, checkpoint = self._reach(shared, len(tokens), held, low, known, cut)
                ways.append(Reuse(n, source=slot, checkpoint=checkpoint))
                junction = max(junction, shared)
        best = max((way.n for way in ways), default=0)
        if reuse:
            for found, saved in self._host.along(key, tokens):
                shared = cut(min(found, most))
                junction = max(junction, shared)
                if shared < best + MIN_COPY:
                    break
                held = len(saved.tokens)
                low = max(0, held - self._sequences.window)
                n, checkpoint = self._reach(shared, len(tokens), held, low, known, cut)
                if n >= best + MIN_COPY:
                    ways.append(Reuse(n, saved=saved, checkpoint=checkpoint))
            if self._sequences.kind is MemoryKind.RECURRENT and known and known[-1] > best:
                ways.append(Reuse(known[-1], checkpoint=True))
            if disk is not None and media is None:
                best = max((way.n for way in ways), default=0)
                held = disk.longest(tokens[:most])
                junction = max(junction, held)
                if held >= best + MIN_COPY:
                    n, _ = self._reach(held, len(tokens), held, max(0, held - self._sequences.window), (), cut)
                    ways.append(Reuse(n, disk=held))
        return sorted((way for way in ways if way.n), key=Reuse.rank, reverse=True), junction

    def _reach(
        self, shared: int, total: int, held: int, low: int, known: Sequence[int], cut: Callable[[int], int]
    ) -> tuple[int, bool]:
        """How many of `shared` tokens are worth having of a sequence, and whether that takes a checkpoint.

        Args:
            total: tokens of the prompt.
            held: tokens that it holds, -1 where it runs on.
            low: the lowest position that its window holds.
            known: lengths for which there are checkpoints.
            cut: the most of so many tokens after which computing can go on.
        """
        sequences = self._sequences
        if sequences.rolls_back:
            beside = any(slot.request is not None for slot in self._slots)
            for n in (cut(self._tile.reused(shared, total, beside=beside)), shared):
                if not sequences.window or low <= max(0, n - sequences.window + 1):
                    return n, False
        elif shared == held:
            return shared, False
        elif sequences.kind is MemoryKind.RECURRENT:
            return 0, False  # its checkpoints need no sequence
        before = bisect_right(known, shared)
        return (known[before - 1], True) if before else (0, False)
