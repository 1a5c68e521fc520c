"""Choosing tokens from rows of logits that the device reduced (core/row_reduction.py).

A reduced row holds the 64 blocks (of 64 tokens or more) with the highest maxima. The k-th of those maxima is a lower
bound of the k-th highest logit, so every token that can be chosen is in the first k blocks, unless other blocks reach
the bound too. The chain then runs on what reaches the bound, in the row's order, and chooses what it would have chosen
from the whole row.

Where that is not certain the whole row is read from the device: a logit is no number, blocks tie at the bound, or two
candidates are equal, whose order libllama does not define. That can be done after a batch of single tokens; after
others, which overwrite what the device has, the request is computed again with whole rows, except for equal candidates:
there the chain takes its own order of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core.batch import Batch
from ...core.context import Context
from ...core.row_reduction import N_BEST, RowLayout, RowReduction
from ..request import Request
from ..slot import Slot
from .chain import TokenSampler
from .topk_prefilter import Ids, Rows, TopKPrefilter

_LOWEST = np.finfo(np.float32).min


class WholeRowNeeded(Exception):
    """The next token of a request cannot be told from a reduced row: it is computed again with whole rows."""


@dataclass
class Candidates:
    """What was found in some reduced rows.

    Attributes:
        sizes: how many tokens of each row reach its bound, int64 (rows,).
        ids, logits: those tokens, row after row, each in the row's order.
        sound: whether they are all that can be chosen, bool (rows,).
        ties: whether some of them are equal, bool (rows,).
    """

    sizes: Ids
    ids: Ids
    logits: Rows
    sound: npt.NDArray[np.bool_]
    ties: npt.NDArray[np.bool_]


def find_candidates(layout: RowLayout, rows: Rows, needs: Ids) -> Candidates:
    """The tokens that can be among the highest of each reduced row.

    Args:
        rows: float32 (rows, at least layout.width).
        needs: how many of the highest, int64 (rows,), below N_BEST.
    """
    n, most, block = len(rows), int(needs.max()), layout.block
    each = np.arange(n)
    blocks = layout.blocks(rows)
    bound = np.maximum(blocks[each, needs - 1].max(axis=1), _LOWEST)
    sound = (blocks[each, needs].max(axis=1) < bound) & ~np.isnan(layout.sums(rows))

    place = np.flatnonzero(blocks[:, :most] >= bound[:, None, None])
    at = place // block
    row, inside = at // most, place - at * block
    at -= row * most
    ids = layout.numbers(rows)[row, at] * block + inside
    logits = blocks[row, at, inside]
    if layout.rest:
        last = layout.last(rows)
        more, inside = np.nonzero(last >= bound[:, None])
        row, logits = np.concatenate([row, more]), np.concatenate([logits, last[more, inside]])
        ids = np.concatenate([ids, layout.n_blocks * block + inside])
    order = np.argsort(row * layout.n_vocab + ids)
    row, ids, logits = row[order], ids[order], logits[order]

    # floats as integers of the same order, behind their rows: equal ones are neighbours
    bits = (logits + np.float32(0)).view(np.int32).astype(np.int64)  # -0 is 0
    key = np.sort((row << 32) + np.where(bits < 0, -1 - (bits & 0x7FFFFFFF), bits) + 0x80000000)
    ties = np.zeros(n, np.bool_)
    ties[key[1:][key[1:] == key[:-1]] >> 32] = True
    return Candidates(np.bincount(row, minlength=n), ids, logits, sound, ties)


class ReducedRows:
    """Samples the reduced rows of one context.

    Attributes:
        reduction: which sequences they are of.
    """

    def __init__(self, context: Context, prefilter: TopKPrefilter) -> None:
        self.reduction = RowReduction(context)
        self._layout, self._prefilter = self.reduction.layout, prefilter
        self._context = context
        self._jobs: list[tuple[Slot, TokenSampler, int]] = []
        self._rows: Rows = np.empty((0, 0), np.float32)
        self._row = self._n_outputs = 0
        self._alone = False
        if self._layout.pays:  # most requests can be served so, and each change plans the graph anew
            for seq_id in range(context.n_seq_max):
                self.reduction.attach(seq_id)

    def settle(self, seq_id: int, request: Request) -> None:
        """Have the rows of a sequence reduced where its request can be served so, and whole where not.

        It can where its chain begins with top-k, no more than 62 with the tokens that are biased or banned, or is
        greedy; and without constraint, log probabilities, penalties, logits processors and positive biases.
        """
        sampler = request.sampler
        assert sampler is not None
        short = sampler.row is None and not request.scoring and not request.place.whole and self._layout.pays
        sampler.reduced = short and (sampler.argmax is not None or 0 < sampler.reach < N_BEST)
        if sampler.reduced:
            self.reduction.attach(seq_id)
        else:
            self.reduction.detach(seq_id)

    def begin(self, batch: Batch, n_outputs: int) -> None:
        """A batch was decoded."""
        self._jobs, self._n_outputs = [], n_outputs
        n = batch.n_tokens
        self._alone = n <= self._context.n_seq_max and len(set(batch.seq[:n, 0].tolist())) == n

    @property
    def places(self) -> set[int]:
        """The outputs that were added."""
        return {place for _, _, place in self._jobs}

    def add(self, slot: Slot, sampler: TokenSampler, row: int, place: int) -> None:
        """A row of it, of a sequence whose rows are reduced, and its place among the outputs."""
        if not self._jobs:
            self._row = row
        self._jobs.append((slot, sampler, place))

    def read(self) -> bool:
        """Wait for the rows that were added; returns whether they are numbers.

        For a caller that holds the context's `exclusive()`.
        """
        if not self._jobs:
            return True
        rows = self.reduction.rows(self._row, self._jobs[0][2], self._n_outputs)
        places = [place for _, _, place in self._jobs]
        first, n = places[0], len(places)
        self._rows = rows[first : first + n] if places == list(range(first, first + n)) else rows[places]
        return not bool(np.isnan(self._rows[:, 0]).any())

    def sample(self) -> None:
        """Choose a token for each: `slot.sampled`, -1 where it takes the whole row and that is not to be had.

        For a caller that holds the context's `exclusive()`.
        """
        jobs = self._jobs
        if not jobs:
            return
        needs = np.array([sampler.reach or 1 for _, sampler, _ in jobs])
        found = find_candidates(self._layout, self._rows, needs)
        ids, logits = found.ids, found.logits
        candidates = self._prefilter.fill(ids, logits)
        start = 0
        missed = []
        sizes, all_sound, all_ties = found.sizes.tolist(), found.sound.tolist(), found.ties.tolist()
        for at, (slot, sampler, _) in enumerate(jobs):
            size, sound, ties = sizes[at], all_sound[at], all_ties[at]
            token, lowered = -1, sampler.argmax
            if sound and size and lowered is not None:
                best = int(ids[start + int(logits[start : start + size].argmax())])
                token = -1 if best in lowered else best
            elif sound and size and not (ties and self._alone):
                token = candidates.choose(sampler.chain, start, size)
            slot.sampled = token
            if token < 0:
                missed.append(at)
            start += size
        for at in missed:
            jobs[at][0].sampled = self._from_whole(at)

    def _from_whole(self, at: int) -> int:
        """Choose from the whole row of a job; -1 where that is not to be had."""
        _, sampler, place = self._jobs[at]
        row = self.reduction.whole_row(place, self._n_outputs) if self._alone else None
        if row is None or not self._layout.is_of(self._rows[at : at + 1], row):
            return -1
        if sampler.argmax is not None:
            token = int(row.argmax())
            if token not in sampler.argmax:
                return token
        elif (token := self._prefilter.sample(row[None], [(sampler.chain, 0, sampler.reach)])[0]) >= 0:
            return token
        return self._prefilter.fill(np.arange(len(row)), row).choose(sampler.chain, 0, len(row))
