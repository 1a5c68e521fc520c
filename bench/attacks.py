"""A server under attack: what it answers, what it holds, and whether a stream beside it keeps its pace.

    python -m bench.attacks [--only NAME ...] [--model smollm2-135m] [--json FILE]

A `llcuda-ffi serve` child listens on 127.0.0.1, with a key and short time limits. One client reads a long stream all
the time; another process, at the lowest priority as it would be another machine, attacks. For each attack: how many
requests, the answers by status (`cut`: closed without one, `open`: held to the end, `left`: the client hung up first),
the server's memory and sockets before, at most and after, and the stream's gaps between tokens: the median during the
attack over the median before and after it, and the largest. Exits with 1 where the server died, answered 5xx other
than 503, an answer came to a hidden request, or sockets were left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tests.support import attacks as sent
from tests.support.server_process import C, Server

from . import report
from .measured import where
from .tables import attack_rows

KEY = "k" * 32
AUTHORIZED = f"Authorization: Bearer {KEY}\r\n".encode()
READ_SECONDS = 3.0
FLOOD = 10_000
Answers = Counter[str]


def keyed(data: bytes) -> bytes:
    """A request that brings the key."""
    line, end, rest = data.partition(b"\r\n")
    return line + end + AUTHORIZED + rest if line.endswith(b" HTTP/1.1") else data


async def talk(port: int, parts: Sequence[bytes], answers: Answers, *, pause: float = 0, leave: bool = False) -> None:
    """One connection: send the parts with pauses between; count what comes until the server closes or is silent."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        answers["not connected"] += 1
        return
    found, silent = b"", False
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)
        wait = READ_SECONDS + 5
        while not leave and (data := await asyncio.wait_for(reader.read(1 << 16), wait)):
            found += data
            wait = 0.5 if b"\r\n\r\n" in found else wait
    except (ConnectionResetError, BrokenPipeError):
        pass
    except (TimeoutError, asyncio.TimeoutError):
        silent = True
    finally:
        writer.transport.abort()
    codes = [piece[:3].decode() for piece in found.split(b"HTTP/1.1 ")[1:]]
    answers.update(codes or ["left" if leave else "open" if silent else "cut"])


async def crowd(count: int, one: Callable[[int], Awaitable[None]], at_once: int = 50) -> None:
    """Run `one` for each number, so many at once."""
    room = asyncio.Semaphore(at_once)

    async def each(number: int) -> None:
        async with room:
            await one(number)

    await asyncio.gather(*map(each, range(count)))


async def each_of(payloads: Sequence[bytes], count: int, port: int, answers: Answers, at_once: int = 20) -> int:
    """Payloads in turns."""
    await crowd(count, lambda i: talk(port, [keyed(payloads[i % len(payloads)])], answers), at_once)
    return count


async def slow_heads(port: int, answers: Answers) -> int:
    head = keyed(sent.SOUND)
    await crowd(300, lambda _: talk(port, [head[i : i + 1] for i in range(30)], answers, pause=0.2), 300)
    return 300


async def slow_bodies(port: int, answers: Answers) -> int:
    head, body = keyed(sent.HEAD + b"Content-Length: 100\r\n\r\n"), [b" "] * 30
    await crowd(300, lambda _: talk(port, [head, *body], answers, pause=0.2), 300)
    return 300


async def half_requests(port: int, answers: Answers) -> int:
    dice, whole = random.Random(1), keyed(sent.SOUND)
    cuts = [dice.randrange(1, len(whole)) for _ in range(1000)]
    await crowd(1000, lambda i: talk(port, [whole[: cuts[i]]], answers), 500)
    return 1000


async def disconnects(port: int, answers: Answers) -> int:
    """At each byte of a request, five times; the whole one streams, and is left."""
    body = json.dumps({"prompt": "x", "max_tokens": 50, "stream": True}).encode()
    whole = keyed(sent.HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    count = 5 * (len(whole) + 1)
    await crowd(count, lambda i: talk(port, [whole[: i // 5]], answers, leave=True), 20)
    return count


async def flood(port: int, answers: Answers) -> int:
    """10,000 connections that send nothing, or half a head; how many the server holds is in its sockets."""
    opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(number: int) -> None:
        try:
            opened.append(await asyncio.open_connection("127.0.0.1", port))
            if number % 2:
                opened[-1][1].write(sent.SOUND[:20])
        except OSError:
            answers["not connected"] += 1

    await crowd(FLOOD, one, 200)
    answers["connected"] = len(opened)
    ends = [asyncio.wait_for(reader.read(), READ_SECONDS + 5) for reader, _ in opened]
    for end in await asyncio.gather(*ends, return_exceptions=True):
        answers["open" if isinstance(end, (TimeoutError, asyncio.TimeoutError)) else "cut"] += 1
    for _, writer in opened:
        writer.transport.abort()
    return FLOOD


async def pipelined(port: int, answers: Answers) -> int:
    """Twenty sound requests in one piece, then garbage."""
    garbage = random.Random(2)
    many = [keyed(sent.HEALTH) * 20 + garbage.randbytes(2000) for _ in range(100)]
    await crowd(500, lambda i: talk(port, [many[i % 100]], answers), 20)
    return 500


async def keys(port: int, answers: Answers) -> int:
    """Wrong keys, by how much of the right one they begin with, and right ones; how long each is thought about."""
    dice, times = random.Random(3), dict[str, list[float]]({"first": [], "last": [], "right": []})
    wrong = {"first": "x" + KEY[1:], "last": KEY[:-1] + "x", "right": KEY}
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3000):
        kind = dice.choice(list(wrong))
        began = time.perf_counter()
        writer.write(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Api-Key: {wrong[kind]}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        await reader.readexactly(length)
        times[kind].append(time.perf_counter() - began)
        answers[head.split()[1].decode()] += 1
    writer.close()
    for kind in ("first", "last"):
        answers[f"us, wrong in its {kind} character"] = round(statistics.median(times[kind]) * 1e6)
    await crowd(
        1000, lambda i: talk(port, [b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Api-Key: %x\r\n\r\n" % i], answers), 100
    )
    return 4000


async def smuggling(port: int, answers: Answers) -> int:
    """Shapes that two parsers read differently; an answer 200 is one to the hidden request."""
    count = await each_of(sent.SMUGGLED, 20 * len(sent.SMUGGLED), port, answers)
    answers["hidden"] = answers["200"]
    return count


async def unread(port: int, answers: Answers) -> int:
    """Streams asked for and never read."""
    body = json.dumps({"prompt": "x", "max_tokens": 20, "stream": True}).encode()
    whole = keyed(sent.HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await crowd(100, lambda _: talk(port, [whole], answers, pause=1, leave=True), 100)
    return 100


ATTACKS: dict[str, Callable[[int, Answers], Coroutine[Any, Any, int]]] = {
    "slow heads": slow_heads,
    "slow bodies": slow_bodies,
    "half requests": half_requests,
    "disconnects at each byte": disconnects,
    "10,000 connections": flood,
    "pipelined garbage": pipelined,
    "garbage": lambda port, answers: each_of(sent.GARBAGE, 1000, port, answers, 200),
    "huge heads": lambda port, answers: each_of(sent.HUGE_HEADS, 300, port, answers),
    "wrong encodings": lambda port, answers: each_of(sent.ENCODINGS, 1000, port, answers),
    "chunk bombs": lambda port, answers: each_of(sent.CHUNK_BOMBS, 100, port, answers),
    "request smuggling": smuggling,
    "keys": keys,
    "streams never read": unread,
}
MEGABYTES = {f"1 MB: {name}": sent.post(*request) for name, request in sent.megabytes().items()}


async def attack(name: str, port: int, answers: Answers) -> int:
    """Make one; how many requests that were."""
    if name in MEGABYTES:
        return await each_of([MEGABYTES[name]], 3, port, answers, 1)
    return await ATTACKS[name](port, answers)


class Watch(threading.Thread):
    """Reads one stream after the other, and notes when each token came."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server, self.gaps, self.over = server, list[tuple[float, float]](), False

    def run(self) -> None:
        """Until it is over."""
        # short ones, as the gap grows with the context; one connection, as a flood leaves no room for new ones
        asked = {"prompt": "Once upon a time", "max_tokens": 150, "ignore_eos": True, "prefix_cache": False}
        body = json.dumps({**asked, "stream": True})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection = self._server.connect()
        while not self.over:
            connection.request("POST", C, body, headers)
            last = 0.0
            for line in connection.getresponse():
                if line.startswith(b"data: {") and (now := time.monotonic()):
                    if last:
                        self.gaps.append((now, now - last))
                    last = now
        connection.close()

    def of(self, begin: float, end: float) -> list[float]:
        """The gaps in milliseconds that ended within."""
        return [gap * 1e3 for at, gap in self.gaps if begin <= at <= end]


def state_of(pid: int) -> tuple[float, int]:
    """Resident MiB and open sockets of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    sockets = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets += os.readlink(link).startswith("socket:")
        except FileNotFoundError:  # closed meanwhile
            pass
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, sockets


def attacked(name: str, server: Server, watch: Watch, calm: float) -> dict[str, Any]:
    """Run one attack in a child; what came of it."""
    began, before = time.monotonic(), state_of(server.process.pid)
    time.sleep(calm)
    command = [sys.executable, "-m", "bench.attacks", "--child", name, "--port", str(server.port)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()  # its imports are over
    start, most, output = time.monotonic(), before, list[str]()
    child.stdin.write("\n")
    child.stdin.flush()
    reader = threading.Thread(target=lambda: output.append(child.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    while reader.is_alive():
        now = state_of(server.process.pid)
        most = max(most[0], now[0]), max(most[1], now[1])
        time.sleep(0.05)
    reader.join()
    child.wait()
    end = time.monotonic()
    while state_of(server.process.pid)[1] > before[1] and time.monotonic() < end + 2 * READ_SECONDS:
        time.sleep(0.05)
    rest = time.monotonic()
    time.sleep(calm)
    count, answers = json.loads(output[0])
    calmly = watch.of(began, start) + watch.of(rest, time.monotonic())
    during = watch.of(start, end)
    after = state_of(server.process.pid)
    row = {"attack": name, "count": count, "answers": answers, "alive": server.process.poll() is None}
    row |= {"seconds": round(end - start, 1), "rss_mib": [round(x) for x in (before[0], most[0], after[0])]}
    row |= {"sockets": [before[1], most[1], after[1]]}
    row |= {"gap_ms": [round(statistics.median(x), 2) if x else None for x in (calmly, during)]}
    row |= {"largest_gap_ms": [round(max(x, default=0), 1) for x in (calmly, during)]}
    row["wrong"] = not row["alive"] or after[1] > before[1] or bool(answers.get("hidden"))
    row["wrong"] |= any(code.startswith("5") and code not in ("501", "503") for code in answers)
    return row


def child(name: str, port: int) -> None:
    """Attack, and print how many requests that were and what was answered."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.nice(19)
    answers: Answers = Counter()
    print("ready", flush=True)
    sys.stdin.readline()
    count = asyncio.run(attack(name, port, answers))
    print(json.dumps([count, {k: n for k, n in answers.items() if n}]))


def main() -> None:
    """Run the attacks one after the other."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="attacks whose names begin so")
    p.add_argument("--model", default="smollm2-135m")
    p.add_argument("--threads", type=int, default=1, help="that compute: a core is left for connections")
    p.add_argument("--calm", type=float, default=1.0, help="seconds before and after each in which none is made")
    p.add_argument("--json", type=Path, metavar="FILE", help="keep the rows there; those of other attacks stay")
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = p.parse_args()
    if given.child:
        return child(given.child, given.port)
    out: dict[str, Any] = {"benchmark": "attacks", "command": report.command(), "machine": report.host(), "rows": {}}
    if given.json and given.json.exists():
        out["rows"] = json.loads(given.json.read_text(encoding="utf-8"))["rows"]
    rows = out["rows"]
    every = [*ATTACKS, *MEGABYTES]
    names = [name for name in every if any(name.startswith(only) for only in given.only)]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"{where(out)}, {hard:,} files at most")
    with tempfile.TemporaryDirectory() as folder:
        options = (
            "-c",
            4096,
            "--parallel",
            4,
            "--api-key",
            KEY,
            "--read-timeout",
            READ_SECONDS,
            "--threads",
            given.threads,
        )
        server = Server(Path(folder) / "log", given.model, *options)
        watch = Watch(server)
        watch.start()
        while len(watch.gaps) < 50:
            time.sleep(0.1)
        for name in names:
            rows[name] = attacked(name, server, watch, given.calm)
            print(json.dumps(rows[name]), flush=True)
        watch.over = True
        watch.join(10)
        if server.stop() != 0 or "Traceback" in (text := (Path(folder) / "log").read_text()):
            raise SystemExit(f"the server failed:\n{text[-3000:]}")
    out["rows"] = {name: rows[name] for name in every if name in rows}
    report.write(out, given.json)
    print("\n".join(attack_rows(rows[name] for name in names)))
    raise SystemExit(any(rows[name]["wrong"] for name in names))


if __name__ == "__main__":
    main()
