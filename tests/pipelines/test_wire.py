"""Answers on the connection from a replica to an ingress."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from llcuda_ffi.pipelines.serve import wire
from llcuda_ffi.pipelines.serve.wire import Arriving, Head, Inbox, Outbox


async def _all(arriving: Arriving, pause: float = 0) -> list[Any]:
    found: list[Any] = []
    while parts := await arriving.take(pause):
        found += parts
    return found


async def _closed(inbox: Inbox, outbox: Outbox) -> None:
    """Both ends are."""
    inbox.close()
    await outbox.close()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait([task for task in others if task is not None], timeout=0.01)


def test_answers_share_a_connection() -> None:
    """Thirty answers at once over one connection: each gets its own head and pieces, in order."""

    async def run() -> None:
        inbox, outbox = Inbox(), Outbox()
        arriving = [await inbox.expect("127.0.0.1") for _ in range(30)]

        async def send(i: int) -> None:
            sending = await outbox.to(arriving[i].reply)
            await sending.head(200 + i, [(b"x-a", b"\xe9")])
            for k in range(50):
                await sending.body(b"%d %d" % (i, k) * (1 + 5000 * (k == 25)))
            await sending.end()

        inbox.forget(arriving[29])
        found = await asyncio.gather(*(_all(one, 0.001 * (i % 2)) for i, one in enumerate(arriving[:29])), send(29),
                                     *(send(i) for i in range(29)))  # fmt: skip
        for i, parts in enumerate(found[:29]):
            assert parts[0] == Head(200 + i, [(b"x-a", b"\xe9")])
            assert b"".join(parts[1:]) == b"".join(b"%d %d" % (i, k) * (1 + 5000 * (k == 25)) for k in range(50))
        await _closed(inbox, outbox)

    asyncio.run(run())


def test_a_lost_connection_ends_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """What had begun fails after the time in which Ray may say more; a whole answer stays; the next one connects anew.
    Whoever does not know the secret is sent away."""
    monkeypatch.setattr(wire, "_VERDICT_S", 0.01)

    async def run() -> None:
        inbox, outbox = Inbox(), Outbox()
        begun, whole = [await inbox.expect("127.0.0.1") for _ in range(2)]
        sending = await outbox.to(begun.reply)
        await sending.head(200, [])
        assert await begun.take(0) == [Head(200, [])]
        other = await outbox.to(whole.reply)
        await other.head(200, [])
        await other.end()
        await whole.take(0)
        stranger = dataclasses.replace(begun.reply, secret=bytes(32))
        reader, writer = await asyncio.open_connection(stranger.host, stranger.port)
        writer.write(stranger.secret + b"x" * 100)
        with pytest.raises(ConnectionError):
            assert not await reader.read()
            raise ConnectionResetError
        writer.close()
        await writer.wait_closed()
        await outbox.close()
        with pytest.raises(ConnectionResetError):
            await begun.take(0)
        assert await whole.take(0) == []
        third = await inbox.expect("127.0.0.1")
        with pytest.raises(ConnectionResetError):
            await sending.body(b"late")
        sending = await outbox.to(third.reply)
        await sending.head(201, [])
        assert await third.take(0) == [Head(201, [])]
        await _closed(inbox, outbox)

    asyncio.run(run())
