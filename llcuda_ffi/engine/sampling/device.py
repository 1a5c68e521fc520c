"""Sampling on the backend: the chain runs in the compute graph, and logits need not leave the GPU (llama_set_sampler).

Attaching a chain builds the graph anew, which costs more than it saves for short answers, so it is an option.
"""

from __future__ import annotations

from ...core.context import Context
from ..request import Request

# what the compute graph can do; a chain with anything else runs on the CPU as always
_OFFLOADED = frozenset({"greedy", "dist", "top_k", "top_p", "min_p", "temp", "temp_ext", "penalties", "logit_bias"})


class BackendSampling:
    """Attaches chains to sequences of one context. A chain is attached to one sequence at most."""

    def __init__(self, context: Context) -> None:
        context.model.library.profile.require("llama_set_sampler")
        self._context = context
        self._attached: set[int] = set()

    def attach(self, seq_id: int, request: Request) -> None:
        """Run the request's chain on the backend, where all of it can run there."""
        sampler = request.sampler
        if sampler is None or sampler.row is not None or request.scoring:
            return
        if not _OFFLOADED.issuperset(sampler.chain.names):
            return
        if sampler.chain.attach(self._context, seq_id):
            self._attached.add(seq_id)

    def detach(self, seq_id: int) -> None:
        """Before the chain goes to another request."""
        if seq_id in self._attached:
            self._attached.remove(seq_id)
            self._context.detach_sampler(seq_id)
