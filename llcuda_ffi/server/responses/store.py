"""The responses that a server remembers, so that a later request may go on from one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
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

    async def items(self, key: str | None, names: Sequence[object]) -> list[dict[str, Any] | None]:
        """The items of answers that are kept, by their ids; None for one that is not, or not of this key."""

    async def delete(self, key: str | None, name: str) -> None:
        """Forget a response; Refused (404) as `get`."""


class ResponseStore:
    """The last responses, up to a number and a size; the oldest go first. Each key sees only its own."""

    def __init__(self, most: int = MOST_RESPONSES, characters: int = MOST_CHARACTERS) -> None:
        self._most, self._limit = most, characters
        self._kept: OrderedDict[tuple[str | None, str], StoredResponse] = OrderedDict()
        self._items: dict[tuple[str | None, str], dict[str, Any]] = {}
        self._characters = 0

    async def put(self, key: str | None, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Keep a response for the holder of `key`."""
        stored = StoredResponse(response, items, len(repr(items)) + len(repr(response)))
        self._kept[key, response["id"]] = stored
        self._items.update({(key, item["id"]): item for item in response.get("output", ())})
        self._characters += stored.characters
        while len(self._kept) > self._most or self._characters > self._limit:
            (owner, _), oldest = self._kept.popitem(last=False)
            self._gone(owner, oldest)

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
        self._gone(key, await self.get(key, name))
        del self._kept[key, name]

    async def items(self, key: str | None, names: Sequence[object]) -> list[dict[str, Any] | None]:
        """The items of answers that are kept, by their ids; None for one that is not, or not of this key."""
        return [self._items.get((key, name)) if isinstance(name, str) else None for name in names]

    def _gone(self, key: str | None, stored: StoredResponse) -> None:
        self._characters -= stored.characters
        for item in stored.response.get("output", ()):
            del self._items[key, item["id"]]


def not_kept(name: object) -> Refused:
    """The 404 of a response that is not kept."""
    return Refused(404, f"no response is kept under {name!r:.100}", "response_not_found")
