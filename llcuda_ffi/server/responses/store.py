"""The responses that a server remembers, so that a later request may go on from one."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import Refused

MOST_RESPONSES = 1000
MOST_CHARACTERS = 64 << 20


@dataclass
class StoredResponse:
    """A response and the conversation that led to it.

    Attributes:
        response: as it was answered.
        items: the items of all requests before it, and its own input.
        characters: about how much both take.
    """

    response: dict[str, Any]
    items: list[dict[str, Any]]
    characters: int = 0


class ResponseKeeper(Protocol):
    """What `create_app` takes as `responses`: a ResponseStore, or one that several servers share. Each key sees only
    its own."""

    async def put(self, key: str | None, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Keep a response for the holder of `key`."""

    async def get(self, key: str | None, name: object) -> StoredResponse:
        """A response that is kept; Refused (404) where it is not, or not of this key."""

    async def delete(self, key: str | None, name: str) -> None:
        """Forget a response; Refused (404) as `get`."""


class ResponseStore:
    """The last responses, up to a number and a size; the oldest go first. Each key sees only its own."""

    def __init__(self, most: int = MOST_RESPONSES, characters: int = MOST_CHARACTERS) -> None:
        self._most, self._limit = most, characters
        self._kept: OrderedDict[tuple[str | None, str], StoredResponse] = OrderedDict()
        self._characters = 0

    async def put(self, key: str | None, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Keep a response for the holder of `key`."""
        stored = StoredResponse(response, items, len(repr(items)) + len(repr(response)))
        self._kept[key, response["id"]] = stored
        self._characters += stored.characters
        while len(self._kept) > self._most or self._characters > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._characters -= oldest.characters

    async def get(self, key: str | None, name: object) -> StoredResponse:
        """A response that is kept.

        Raises:
            Refused: 404, it is not, or not of this key.
        """
        stored = self._kept.get((key, name)) if isinstance(name, str) else None
        if stored is None:
            raise not_kept(name)
        self._kept.move_to_end((key, str(name)))
        return stored

    async def delete(self, key: str | None, name: str) -> None:
        """Forget a response.

        Raises:
            Refused: 404, as `get`.
        """
        self._characters -= (await self.get(key, name)).characters
        del self._kept[key, name]


def not_kept(name: object) -> Refused:
    """The 404 of a response that is not kept."""
    return Refused(404, f"no response is kept under {name!r:.100}", "response_not_found")
