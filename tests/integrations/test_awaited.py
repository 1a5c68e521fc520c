"""Pieces of a generator, awaited: in order, and closed however the reader leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import aclosing

import pytest

from llcuda_ffi.integrations.awaited import awaited


class Pieces:
    """Numbers; the second one waits until it may go on."""

    def __init__(self, *, fails: bool = False) -> None:
        self.go_on, self.waits, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.fails = fails

    def run(self) -> Generator[int]:
        """0, 1, 2."""
        try:
            for i in range(3):
                if i == 1:
                    self.waits.set()
                    assert self.go_on.wait(20)
                    if self.fails:
                        raise ValueError("broken")
                yield i
        finally:
            self.closed.set()


def test_in_order() -> None:
    """All of them, and an exception where one is raised."""

    async def read(pieces: Pieces) -> list[int]:
        pieces.go_on.set()
        return [piece async for piece in awaited(pieces.run())]

    assert asyncio.run(read(Pieces())) == [0, 1, 2]
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(read(Pieces(fails=True)))


@pytest.mark.parametrize("fails", [False, True])
def test_cancelled(fails: bool) -> None:
    """A reader that is cancelled while a piece is computed leaves at once; the generator is closed after the piece."""
    pieces = Pieces(fails=fails)

    async def read() -> None:
        async with aclosing(awaited(pieces.run())) as found:
            async for _ in found:
                pass

    async def main() -> None:
        task = asyncio.create_task(read())
        await asyncio.to_thread(pieces.waits.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not pieces.closed.is_set()
        pieces.go_on.set()
        assert await asyncio.to_thread(pieces.closed.wait, 20)

    asyncio.run(main())


def test_left() -> None:
    """A reader that leaves between two pieces closes it."""
    pieces = Pieces()

    async def main() -> None:
        async with aclosing(awaited(pieces.run())) as found:
            async for piece in found:
                assert piece == 0
                break
        assert pieces.closed.is_set()

    asyncio.run(main())
