"""Which token comes next: each request's chain, and the ways to run it on a row of logits."""

from __future__ import annotations

from collections.abc import Sequence, Set
from math import isnan
from typing import Literal

import numpy as np

from ...core.batch import Batch
from ...core.context import Context
from ...core.sampler import SamplerChain, sample_rows
from ...params import UINT32_MAX
from ..plan import Row
from ..request import Request
from ..results import TokenLogprob
from ..slot import Slot
from .chain import Chains, RowSampler, TokenSampler
from .constraint import Constraint, masks_ahead
from .device import BackendSampling
from .logit_steps import banned_tokens
from .reduced_rows import ReducedRows, WholeRowNeeded
from .row_pool import RowPool
from .topk_prefilter import Job, Rows, lowered_by, reach

# False: on the host; True: by libllama's samplers in the compute graph; "rows": the device reduces the rows
BackendMode = bool | Literal["rows"]


class Selection:
    """Selects tokens for the slots of one context.

    Attributes:
        rows: samples the plain rows of a step together.
    """

    def __init__(self, context: Context, *, backend_sampling: BackendMode = False) -> None:
        self.rows = RowPool(context)
        self._context, self._vocab = context, context.model.vocab
        self._chains = Chains(context.model)
        self._backend = BackendSampling(context) if backend_sampling is True else None
        self._reduced = ReducedRows(context, self.rows.prefilter) if backend_sampling == "rows" else None
        # of a step: its logits; the slots whose highest logit is the token, with the rows among the outputs; the slots
        # whose chains sample, those with a prefilter first, and what those chains sample
        self._logits: Rows | None = None
        self._greedy: list[tuple[Slot, frozenset[int], int]] = []
        self._slots: list[Slot] = []
        self._listed: list[Job] = []
        self._plain: list[tuple[SamplerChain, int]] = []

    def prepare(self, slot: Slot, request: Request) -> None:
        """Give a request that enters a slot its chain; one that comes back has it already."""
        if request.sampler is None:
            request.sampler = self._make(request)
        if self._backend is not None:
            self._backend.attach(slot.index, request)
        if self._reduced is not None:
            self._reduced.settle(slot.index, request)

    def _make(self, request: Request) -> TokenSampler:
        params, constraint = request.params, request.output.constraint
        seed, drawn = request.seed, len(request.output.token_ids) - request.output.forced
        if params.mirostat or params.adaptive_p_target >= 0:
            seed = (seed + drawn) % UINT32_MAX  # their state is not known: at least no number is drawn twice
        chain = self._chains.take(params, seed)
        if drawn and not params.greedy:  # it is computed again, or goes on from an earlier stream
            chain.skip(drawn)
        sampler = TokenSampler(chain, reach(chain.names, params, self._vocab))
        if constraint is not None or request.steps or params.logprobs is not None:
            sampler.row = RowSampler(
                self._context,
                chain,
                constraint,
                request.steps,
                request.output.token_ids,
                params.logprobs,
                self.rows.prefilter,
                sampler.reach,
                banned_tokens(params),
            )
        elif self._backend is None:
            sampler.argmax = lowered_by(chain.names, params, self._vocab)
        if "penalties" in chain.names or "dry" in chain.names:
            look_back = max(params.penalty_last_n, params.dry_penalty_last_n)
            if min(params.penalty_last_n, params.dry_penalty_last_n) < 0:
                look_back = len(request.prompt)
            asked = request.prompt[max(0, len(request.prompt) - look_back) :]
            chain.accept_all(asked[asked >= 0].tolist())  # below 0: of an image
            chain.accept_all(request.output.token_ids)
        return sampler

    # --- the tokens of a step: ahead, read, sample, then token for each other row ---

    def ahead(self, rows: Sequence[Row], batch: Batch, n_outputs: int) -> None:
        """After a decode, while a device may still compute: what can be done without its logits."""
        places: Sequence[int] = range(n_outputs)  # of the batch's rows among the outputs
        if n_outputs < batch.n_tokens:
            places = (np.cumsum(batch.output[: batch.n_tokens], dtype=np.int64) - 1).tolist()
        reduced = self._reduced
        if reduced is not None:
            reduced.begin(batch, n_outputs)
        constraints: list[Constraint] = []
        self._greedy, self._listed, self._plain = greedy, listed, plain = [], [], []
        first: list[Slot] = []
        others: list[Slot] = []
        for row, slot in rows:
            if row < 0 or slot.draft or slot.request is None:
                continue  # drafts are verified one after another
            sampler = slot.request.sampler
            assert sampler is not None
            if sampler.row is not None:
                if sampler.row.constraint is not None:
                    constraints.append(sampler.row.constraint)
            elif sampler.reduced and reduced is not None:
                reduced.add(slot, sampler, row, places[row])
            elif sampler.argmax is not None:
                greedy.append((slot, sampler.argmax, places[row]))
            elif sampler.reach and self._backend is None:
                first.append(slot)
                listed.append((sampler.chain, places[row], sampler.reach))
            else:
                others.append(slot)
                plain.append((sampler.chain, row))
        self._slots = first + others
        if len(constraints) > 1:
            masks_ahead(constraints)
        if self._slots and self._backend is None:
            self.rows.rouse(len(plain), len(listed))

    def read(self, n_outputs: int) -> bool:
        """Wait for the logits of the last decode; returns whether they are numbers.

        The first logit of each output is looked at, no more: a hidden state without numbers leaves none in its row.
        True where there are no logits, because they were sampled on the device. For a caller that holds the context's
        `exclusive()`.
        """
        reduced: Set[int] = frozenset() if self._reduced is None else self._reduced.places
        if reduced and self._reduced is not None and not self._reduced.read():
            return False
        whole = len(reduced) < n_outputs
        self._logits = logits = self._context.output_logits(n_outputs) if whole else None
        if logits is None:
            return True
        first = logits[:, 0].tolist()
        if reduced:
            first = [value for place, value in enumerate(first) if place not in reduced]
        return not any(map(isnan, first))

    def finite_row(self, row: int) -> bool:
        """Whether those of one batch row are numbers."""
        return not isnan(self._context.logits_view(row)[0])

    def sample(self) -> None:
        """Choose the tokens that `ahead` found to need no more than a chain: they are `slot.sampled`, -1 for none.

        For a caller that holds the context's `exclusive()`.
        """
        logits = self._logits
        if self._reduced is not None:
            self._reduced.sample()
        if logits is not None:
            for slot, lowered, place in self._greedy:
                token = int(logits[place].argmax())
                if token not in lowered:
                    slot.sampled = token
        if self._slots:
            tokens = self.rows.sample(self._listed, self._plain, logits)
            for slot, token in zip(self._slots, tokens, strict=True):
                slot.sampled = token

    def _choose(self, sampler: TokenSampler, row: int) -> int:
        """One token by the chain alone; for a caller that holds the context's `exclusive()`."""
        if sampler.argmax is not None:
            token = int(self._context.row_logits(row).argmax())
            if token not in sampler.argmax:
                return token
        return sample_rows(self._context, [(sampler.chain, row)])[0]

    def token(self, row: int, request: Request) -> tuple[int, TokenLogprob | None]:
        """The next token of a request for which `sample` left none, from batch row `row`.

        Raises:
            InvalidRequest: a grammar leaves no token to choose.
            WholeRowNeeded: the device kept too little of the row.
        """
        sampler = request.sampler
        assert sampler is not None
        if sampler.reduced:
            raise WholeRowNeeded
        if sampler.row is not None:
            return sampler.row.sample(row)
        with self._context.exclusive():
            return self._choose(sampler, row), None

    def detach(self, slot: Slot) -> None:
        """Before a slot gives up its request."""
        if self._backend is not None:
            self._backend.detach(slot.index)

    def release(self, slot: Slot, request: Request) -> None:
        """A request is over."""
        self.detach(slot)
        self.drop(request)

    def drop(self, request: Request) -> None:
        """The request's sampler is not needed, or not true, any more: its chain is kept for another one."""
        sampler, request.sampler = request.sampler, None
        if sampler is not None:
            self._chains.give(request.params, sampler.chain)

    def close(self) -> None:
        """Free the chains and end the threads."""
        if self._reduced is not None:
            self._reduced.reduction.close()
        self._chains.close()
        self.rows.close()
