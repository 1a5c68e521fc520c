"""What HTTP costs: N streams from the server against the same N streams in its process, alternating.

    python bench/http_cost.py [--model smollm2-135m] [--streams 16] [--tokens 64] [--rounds 3] [--idle 0]

Prints for each side tokens per second and the CPU time of this process for each token, which a busy machine changes
less. The client is another process and only reads; `--idle` opens so many silent connections beside.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time

CLIENT = """
import asyncio, json, sys
port, n, tokens, model = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
async def one(i):
    body = json.dumps({"messages": [{"role": "user", "content": f"{i} Tell me a long story."}], "max_tokens": tokens,
                       "stream": True, "ignore_eos": True, "seed": i}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: a\\r\\nContent-Type: application/json\\r\\n"
                 b"Content-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body) + body)
    data = await reader.read()
    assert data.startswith(b"HTTP/1.1 200") or b" 200 " in data[:20], data[:300]
    async for more in reader:
        data += more
    writer.close()
    assert b"[DONE]" in data, data[-300:]
async def main():
    await asyncio.gather(*(one(i) for i in range(n)))
asyncio.run(main())
"""


async def main() -> None:
    """Measure, print."""
    import uvicorn

    from llcuda_ffi import AsyncLlama
    from llcuda_ffi.server import Models, create_app
    from llcuda_ffi.server.connections import BoundedProtocol

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=int, default=0)
    given = parser.parse_args()
    n, tokens = given.streams, given.tokens
    llm = await AsyncLlama.load(given.model, n_parallel=n, n_ctx=256, n_threads=1)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        create_app(Models.of(llm)), http=BoundedProtocol, ws="none", log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(given.idle)]

    async def inside(i: int) -> None:
        messages = [{"role": "user", "content": f"{i} Tell me a long story."}]
        async for _ in llm.chat_stream(messages, max_tokens=tokens, ignore_eos=True, seed=i):
            pass

    async def in_process() -> None:
        await asyncio.gather(*(inside(i) for i in range(n)))

    async def over_http() -> None:
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", CLIENT, str(port), str(n), str(tokens), given.model, stderr=subprocess.PIPE
        )
        _, said = await client.communicate()
        assert client.returncode == 0, said.decode()

    sides = {"in process": in_process, "over HTTP": over_http}
    for side in sides.values():  # warm
        await side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    loop_cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.rounds):
        for name, side in sides.items():
            began, cpu_began, thread_began = time.perf_counter(), time.process_time(), time.thread_time()
            await side()
            seconds[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - cpu_began)
            loop_cpu[name].append(time.thread_time() - thread_began)
    work = n * tokens
    rows = {
        name: {
            "tokens_per_s": round(work / min(seconds[name]), 1),
            "cpu_us_per_token": round(1e6 * min(cpu[name]) / work, 1),
            "loop_us_per_token": round(1e6 * min(loop_cpu[name]) / work, 1),
        }
        for name in sides
    }
    a, b = rows["in process"], rows["over HTTP"]
    ratio = b["cpu_us_per_token"] / a["cpu_us_per_token"] - 1
    print(json.dumps({**vars(given), **rows, "more_cpu": round(ratio, 4)}))
    for _, writer in silent:
        writer.close()
    server.should_exit = True
    await serving
    await asyncio.to_thread(llm.close)


if __name__ == "__main__":
    asyncio.run(main())
