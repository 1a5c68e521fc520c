"""How many completions may be in the server at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InvalidRequest
from .errors import Refused


class Gate:
    """A bounded queue. One event loop uses it.

    Attributes:
        limit: completions that may run or wait at once.
        inside: those that do.
        refused: requests turned away.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.inside, self.refused, self.closing = limit, 0, 0, False

    @contextmanager
    def enter(self, count: int = 1) -> Iterator[None]:
        """Room for `count` completions.

        Raises:
            Refused: 503, there is none now.
            InvalidRequest: there never is.
        """
        if count > self.limit:
            raise InvalidRequest(f"{count} completions at once: this server takes up to {self.limit}")
        if self.closing:
            raise Refused(503, "the server is stopping", "closing")
        if self.inside + count > self.limit:
            self.refused += 1
            raise Refused(503, f"{self.inside} completions run or wait: try again", "queue_full", {"Retry-After": "1"})
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count
