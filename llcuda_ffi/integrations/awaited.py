"""A generator's pieces for `async for`: each is computed in another thread, so that the event loop runs meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Any, TypeVar

T = TypeVar("T")


async def awaited(pieces: Generator[T, Any, Any]) -> AsyncGenerator[T, None]:
    """The pieces as they come. The generator is closed where the reader leaves or is cancelled: at once, or when the
    piece that is being computed is there."""
    end: Any = object()
    step: asyncio.Future[T] | None = None

    def close(over: asyncio.Future[T]) -> None:
        if not over.cancelled():
            over.exception()  # the reader that it was for has left
        pieces.close()

    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, pieces, end))
            piece = await asyncio.shield(step)
            if piece is end:
                return
            yield piece
    finally:
        if step is None or step.done():
            pieces.close()
        else:
            step.add_done_callback(close)
