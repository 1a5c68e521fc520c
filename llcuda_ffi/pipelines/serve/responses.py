"""The responses that later ones go on from: one actor keeps them for all replicas."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ...server.errors import Refused
from ...server.responses.store import ResponseStore, StoredResponse, not_kept

log = logging.getLogger("llcuda_ffi.server")


class Keeper:
    """The actor: a server's store in a process of its own."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._store = ResponseStore()

    async def put(self, key: str | None, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Keep a response for the holder of `key`."""
        await self._store.put(key, response, items)

    async def get(self, key: str | None, name: object) -> StoredResponse | None:
        """A response that is kept; None where it is not, or not of this key."""
        try:
            return await self._store.get(key, name)
        except Refused:
            return None

    async def items(self, key: str | None, names: Sequence[object]) -> list[dict[str, Any] | None]:
        """The items of answers that are kept, by their ids; None for one that is not, or not of this key."""
        return await self._store.items(key, names)

    async def delete(self, key: str | None, name: str) -> bool:
        """Forget a response; whether it was kept."""
        try:
            await self._store.delete(key, name)
        except Refused:
            return False
        return True


class SharedResponses:
    """What a replica's server takes as its store."""

    def __init__(self, keeper: Any) -> None:
        """Take the actor's handle."""
        self._keeper = keeper

    async def put(self, key: str | None, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Keep a response; where its keeper dies the answer is not lost, but cannot be gone on from."""
        from ray.exceptions import RayActorError

        try:
            await self._keeper.put.remote(key, response, items)
        except RayActorError as error:
            log.warning("a response is not kept: %s", error)

    async def get(self, key: str | None, name: object) -> StoredResponse:
        """A response that is kept; Refused (404) where it is not, or not of this key."""
        found: StoredResponse | None = await self._keeper.get.remote(key, name)
        if found is None:
            raise not_kept(name)
        return found

    async def items(self, key: str | None, names: Sequence[object]) -> list[dict[str, Any] | None]:
        """The items of answers that are kept, by their ids; None for one that is not, or not of this key."""
        found: list[dict[str, Any] | None] = await self._keeper.items.remote(key, list(names))
        return found

    async def delete(self, key: str | None, name: str) -> None:
        """Forget a response; Refused (404) as `get`."""
        if not await self._keeper.delete.remote(key, name):
            raise not_kept(name)
