"""What HTTP costs: the same streams in the process, and over `llcuda-ffi serve` from clients in another process.

Prompts and answers of --tokens tokens, prompts included, every prompt another one, sampled. In the process the streams
are AsyncLlama's; over HTTP each client reads the events of /v1/completions. For both: tokens per second of all, the
time to the first token (median and 99th of a hundred), the CPU time for each token (of the process, and of the
server), which a busy machine changes less, of the event loop's thread in it, where all of HTTP is, and of
the clients' process beside the server. With --idle every second round over HTTP is beside so many idle connections.

    python bench/serving.py [--clients 1 8 64] [--tokens 128] [--idle 1000] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import report

from llcuda_ffi import AsyncLlama, Llama

SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
WORDS = ["sea", "calm", "old", "stones", "light", "cold", "morning", "birds", "went", "over", "far", "hills", "and"]


def prompt(i: int, n: int) -> str:
    """A text of about `n` tokens, another one for each number."""
    return f"{i}: " + " ".join(WORDS[(i * 7 + k * 5) % len(WORDS)] for k in range(n - 4))


def cpu_seconds(pid: int) -> tuple[float, float]:
    """CPU time of a process with its children that ended, and of its first thread alone, in seconds."""

    def ticks(stat: str, fields: slice) -> float:
        return sum(map(int, stat.rpartition(")")[2].split()[fields])) / os.sysconf("SC_CLK_TCK")

    whole, first = Path(f"/proc/{pid}/stat"), Path(f"/proc/{pid}/task/{pid}/stat")
    return ticks(whole.read_text(), slice(11, 15)), ticks(first.read_text(), slice(11, 13))


def since(began: tuple[float, float], pid: int) -> list[float]:
    """The CPU times since then."""
    return [now - before for now, before in zip(cpu_seconds(pid), began, strict=True)]


def summary(
    label: str, tokens: int, seconds: float, first: list[float], cpu: list[float], clients: float = 0.0
) -> dict[str, float]:
    """Print and return the figures of one round; CPU times in seconds: all and the event loop's, and the clients'."""
    order = sorted(first)
    found = {
        "tokens_per_s": tokens / seconds,
        "ttft_p50_ms": statistics.median(order) * 1e3,
        "ttft_p99_ms": order[min(len(order) - 1, int(0.99 * len(order)))] * 1e3,
        "cpu_ms_per_token": cpu[0] / tokens * 1e3,
        "loop_ms_per_token": cpu[1] / tokens * 1e3,
        "client_ms_per_token": clients / tokens * 1e3,
    }
    print(f"  {label:<28} " + ", ".join(f"{k} {v:,.2f}" for k, v in found.items()), flush=True)
    return found


async def in_process(llm: AsyncLlama, clients: int, n: int, round_: int) -> tuple[int, float, list[float]]:
    """`clients` streams at once."""
    first: list[float] = []

    async def one(i: int) -> int:
        began, count = perf_counter(), 0
        stream = llm.stream(prompt(i, n), max_tokens=n, ignore_eos=True, prefix_cache=False, seed=i, **SAMPLED)
        async for chunk in stream:
            if not count:
                first.append(perf_counter() - began)
            count += len(chunk.token_ids)
        return count

    began = perf_counter()
    made = sum(await asyncio.gather(*(one(1000 * round_ + i) for i in range(clients))))
    return made, perf_counter() - began, first


async def over_http(port: int, clients: int, n: int, round_: int) -> tuple[int, float, list[float]]:
    """The same by HTTP: what a client that does nothing but read sees."""
    first: list[float] = []

    async def one(i: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = {
            "model": "model", "prompt": prompt(i, n), "max_tokens": n, "ignore_eos": True, "stream": True, "seed": i,
            "cache_prompt": False, "stream_options": {"include_usage": True}, **SAMPLED,
        }  # fmt: skip
        body = json.dumps(asked).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        began, made = perf_counter(), 0
        writer.write(head.encode() + body)
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                    raise RuntimeError(line.decode() + (await reader.read(1000)).decode())
                continue
            if not made:
                made = 1
                first.append(perf_counter() - began)
            if b'"usage":{' in line or b'"usage": {' in line:
                made = json.loads(line[6:])["usage"]["completion_tokens"]
            if line.startswith(b"data: [DONE]"):
                break
        writer.close()
        return made

    began = perf_counter()
    made = sum(await asyncio.gather(*(one(1000 * round_ + i) for i in range(clients))))
    return made, perf_counter() - began, first


def client(a: argparse.Namespace) -> None:
    """The clients' process: a line of JSON for each round; idle connections are beside every second one."""

    async def rounds() -> None:
        for i in range((a.rounds + 1) * (2 if a.idle else 1)):
            idle = [await asyncio.open_connection("127.0.0.1", a.port) for _ in range(a.idle if i % 2 else 0)]
            began, own = cpu_seconds(a.server), cpu_seconds(os.getpid())
            done = await over_http(a.port, a.clients[0], a.tokens, i + 1)
            print(json.dumps([*done, since(began, a.server), since(own, os.getpid())[0]]), flush=True)
            for _, writer in idle:
                writer.close()

    asyncio.run(rounds())


def main() -> None:
    p = report.parser(__doc__, rounds=3)
    p.add_argument("--clients", type=int, nargs="*", default=[1, 8, 64])
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--device", default="auto")
    p.add_argument("--parallel", type=int, default=None, help="slots of both sides (default: the most clients)")
    p.add_argument("--contexts", type=int, default=None, help="contexts of both sides")
    p.add_argument("--idle", type=int, default=0, help="idle connections beside the clients")
    p.add_argument("--port", type=int, help="of a server that runs (internal)")
    p.add_argument("--server", type=int, help="its process (internal)")
    a = p.parse_args()
    if a.port:
        client(a)
        return
    most = a.parallel or max(a.clients)
    settings: dict[str, Any] = {"n_ctx": 6 * a.tokens, "n_parallel": most, "device": a.device, "n_threads": a.threads}
    if a.contexts:
        settings["n_contexts"] = a.contexts
    with Llama(a.model, **settings) as llm:
        path = str(llm.model.path)
        out = report.header(
            "serving",
            llm.model.library,
            {"model": llm.model.path.name, "tokens": a.tokens, "rounds": a.rounds, "idle": a.idle, **settings},
        )
    inside: dict[int, list[dict[str, float]]] = {}

    async def alone() -> None:
        async with await AsyncLlama.load(path, **settings) as llm:
            for n in a.clients:
                for i in range(a.rounds + 1):
                    began = cpu_seconds(os.getpid())
                    found = await in_process(llm, n, a.tokens, i + 1)
                    if i:
                        cpu = since(began, os.getpid())
                        inside.setdefault(n, []).append(summary(f"in process, {n} streams", *found, cpu))

    asyncio.run(alone())
    command = [
        sys.executable,
        "-c",
        "from llcuda_ffi.cli import main; main()",
        "serve",
        path,
        "--port",
        "0",
        "--alias",
        "model",
    ]
    command += ["--ctx", str(settings["n_ctx"]), "--parallel", str(most), "--device", a.device]
    command += ["--threads", str(a.threads)]
    if a.contexts:
        command += ["--contexts", str(a.contexts)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    outside: dict[int, list[dict[str, float]]] = {}
    beside: dict[int, list[dict[str, float]]] = {}
    try:
        port = listening(server)
        for n in a.clients:
            here = [sys.executable, __file__, "--port", str(port), "--clients", str(n), "--tokens", str(a.tokens)]
            here += ["-r", str(a.rounds), "--idle", str(a.idle), "--server", str(server.pid)]
            done = subprocess.run(here, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr[-1000:])
            lines = [json.loads(line) for line in done.stdout.splitlines()][2 if a.idle else 1 :]
            for i, line in enumerate(lines):
                side, label = (beside, f", {a.idle} idle") if a.idle and i % 2 else (outside, "")
                side.setdefault(n, []).append(summary(f"over HTTP, {n} clients{label}", *line))
    finally:
        server.terminate()
        server.wait(60)
    out["clients"] = {}
    for n in a.clients:
        both = {"in_process": inside[n], "http": outside[n]} | ({"http_idle": beside[n]} if a.idle else {})
        found = {
            side: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            for side, rounds in both.items()
        }
        compared = ("tokens_per_s", "cpu_ms_per_token")
        found["ratio"] = {key: found["http"][key] / found["in_process"][key] for key in compared}
        loop = found["http"]["loop_ms_per_token"] - found["in_process"]["loop_ms_per_token"]
        found["ratio"]["loop_of_cpu"] = loop / found["in_process"]["cpu_ms_per_token"]
        if a.idle:
            found["ratio_idle"] = {key: found["http_idle"][key] / found["http"][key] for key in compared}
        out["clients"][str(n)] = found
        print(f"  {n}: HTTP / in process {found['ratio']}" + (f", idle / none {found['ratio_idle']}" if a.idle else ""))
    report.write(out, a.json)


def listening(server: subprocess.Popen[str]) -> int:
    """The port that a server says it listens on."""
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if "127.0.0.1:" in line:
            return int(line.rpartition("127.0.0.1:")[2].split("/")[0].split()[0].rstrip(".,"))
    raise RuntimeError(f"the server ended: {said[-1000:]}")


if __name__ == "__main__":
    main()
