"""What a streamed answer was made of, so that another process can go on with it."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.results import Chunk

# the number of a prompt of the request, and a chunk of what the engine wrote for it
Entry = tuple[int, Chunk]


class Journal:
    """The engine's chunks behind one streamed answer, in the order in which the endpoint took them.

    An endpoint makes the same events of the same chunks. So who has the chunks of an answer that broke off can make its
    events again, up to where they end, and go on from there.

    Attributes:
        earlier: those of the answer that broke off.
        failure: why this answer breaks off: nothing more of it is to be sent. None while it does not.
    """

    def __init__(self, earlier: Sequence[Entry] = ()) -> None:
        self.earlier = earlier
        self.failure: Exception | None = None
        self._new: list[Entry] = []

    def note(self, entry: Entry) -> None:
        """The next chunk, before the endpoint takes it."""
        self._new.append(entry)

    def take(self) -> list[Entry]:
        """The chunks since the last call."""
        new, self._new = self._new, []
        return new
