"""Which token comes next: each request's chain, and the ways to run it on a row of logits."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

import numpy as np
import numpy.typing as npt

from ...core.batch import Batch
from ...core.context import Context
from ..plan import Row
from ..request import Request
from ..results import TokenLogprob
from ..slot import Slot
from .chain import Chains, RowSampler, TokenSampler
from .constraint import masks_ahead
from .device import BackendSampling
from .row_pool import RowPool
from .topk_prefilter import lowered_by, reach


class Selection:
    """Selects tokens for the slots of one context.

    Attributes:
        rows: samples the plain rows of a step together.
    """

    def __init__(self, context: Context, *, backend_sampling: bool = False) -> None:
        self.rows = RowPool(context)
        self._context, self._vocab = context, context.model.vocab
        self._chains = Chains(context.model)
        self._backend = BackendSampling(context) if backend_sampling else None

    def prepare(self, slot: Slot, request: Request) -> None:
        """Give a request that enters a slot its chain; one that comes back has it already."""
        if request.sampler is None:
            request.sampler = self._make(request)
        if self._backend is not None:
            self._backend.attach(slot.index, request)

    def _make(self, request: Request) -> TokenSampler:
        params, constraint = request.params, request.output.constraint
        chain = self._chains.take(params, request.seed)
        sampler = TokenSampler(chain, reach(chain.names, params, self._vocab))
        if constraint is not None or request.steps or params.logprobs is not None:
            sampler.row = RowSampler(
                self._context,
                chain,
                constraint,
                request.steps,
                request.output.token_ids,
                params.logprobs,
                self.rows.shortlist,
                sampler.reach,
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

    def finite(self, batch: Batch, row: int | None = None) -> bool:
        """Whether the logits of the last decode are numbers, of one batch row or of all.

        One logit of each row is looked at: a hidden state without numbers leaves none in its row.
        """
        outputs = batch.output[: batch.n_tokens]
        first = self._logits_start(int(np.count_nonzero(outputs)))
        if first is None:
            return True  # sampled on the device: there are none
        if row is not None:
            first = first[int(np.count_nonzero(outputs[:row])) :][:1]
        return not any(map(isnan, first.tolist()))  # a few numbers: numpy would take longer

    def _logits_start(self, n_outputs: int) -> npt.NDArray[np.float32] | None:
        """The first logit of each output, float32 (n_outputs,)."""
        with self._context.exclusive():
            logits = self._context.output_logits(n_outputs)
            return None if logits is None else logits[:, 0]

    def ahead(self, rows: Sequence[Row], batch: Batch) -> None:
        """After a decode: do for all rows together what is faster so; `token` finds it."""
        outputs = [slot.request.output for row, slot in rows if row >= 0 and slot.request]
        constraints = [output.constraint for output in outputs if output.constraint is not None]
        if len(constraints) > 1:
            masks_ahead(constraints)  # a GPU still computes meanwhile
        threaded = self.rows.pays(len(rows))
        if self._backend is not None or not (threaded or self.rows.wide):
            return
        plain, jobs = [], []
        for row, slot in rows:
            sampler = None if slot.request is None else slot.request.sampler
            if row < 0 or sampler is None or sampler.row is not None or slot.draft:
                continue
            if sampler.argmax is None and (threaded or sampler.reach):
                plain.append(slot)
                jobs.append((sampler.chain, row, sampler.reach))
        if jobs:
            for slot, token in zip(plain, self.rows.sample(jobs, batch.output[: batch.n_tokens]), strict=True):
                slot.sampled = token

    def token(self, row: int, slot: Slot, request: Request) -> tuple[int, TokenLogprob | None]:
        """The next token of a slot, from batch row `row`.

        Raises:
            InvalidRequest: a grammar leaves no token to choose.
        """
        token, slot.sampled = slot.sampled, -1
        sampler = request.sampler
        assert sampler is not None
        if sampler.row is not None:
            return sampler.row.sample(row)
        lowered = sampler.argmax
        if token < 0 and lowered is not None:
            token = int(self._context.logits_view(row).argmax())
        if token < 0 or (lowered and token in lowered):
            with self._context.exclusive():
                token = sampler.chain.sample_row(self._context, row)
        return token, None

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
        self._chains.close()
        self.rows.close()
