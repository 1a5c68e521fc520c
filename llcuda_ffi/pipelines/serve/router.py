"""Ray Serve's request router that prefers the replica whose KV cache has a prompt's beginning."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from .prefixes import PrefixTable

_SHARE = 0.3  # of a prompt: less of it is computed again sooner than waited for


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # ray has no types here
    """Goes to the holder of a request's prefix, unless others have far less to do; else to one of the idlest."""

    def initialize_state(self, slack: int = 8) -> None:
        """Begin; `slack`: requests that a holder may have more than the idlest replica and still be taken."""
        self._slack = slack
        self._table = PrefixTable()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas, best first."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        load = {name: self.replica_queue_len_cache.get(name) or 0 for name in replicas}
        idlest = sorted(replicas, key=lambda name: (load[name], random.random()))[:2]
        ranks = [[replicas[name] for name in idlest]]
        holder, share = self._table.find(_keys(pending_request), replicas)
        if holder is not None and share >= _SHARE and load[holder] <= load[idlest[0]] + self._slack:
            ranks.insert(0, [replicas[holder]])
        return ranks if replicas else []

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Note who computes the prompt."""
        self._table.put(_keys(pending_request), replica_id)


def _keys(request: PendingRequest | None) -> list[str]:
    found: Any = request.kwargs.get("keys") if request is not None else None
    return found if isinstance(found, list) else []
