"""Ray Serve on one machine: 1, 2, 4 replicas beside as many servers without Ray, sessions, a replica killed, scaling.

    python bench/cluster.py -m MODEL -t 4 [--replicas 1 2 4] [--parallel 8] [--requests 4] [--device cuda] [--json FILE]

scaling    streams of --tokens tokens (prompts as long, all different), 1.5 clients for each slot, each --requests in
           turn: tokens per second through Ray, and of as many `llcuda-ffi serve` without it: what the machine has
sessions   a conversation of four turns for every second slot, all at once: what share of the prompts of
           later turns was cached
kill       streams and whole answers; the first replica is ended by SIGKILL under way: how many are lost
autoscale  from one replica to the most under load: seconds until all run

Needs the extras `ray` and `server`. With RAY_SERVE_ENABLE_HA_PROXY=1 clients go through HAProxy, not Ray's proxy.
On a GPU each replica has one of its own, and -t is of no account.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from time import perf_counter, sleep
from typing import Any

import report
import serving

from llcuda_ffi import Llama

PARTS = ("scaling", "sessions", "kill", "autoscale")
TURNS = 4
PER_PROCESS = 32  # clients
DEADLINE_S = 120


def client(ports: list[int], clients: int, tokens: int, requests: int) -> None:
    """The clients' process: says that it is ready, waits for a line, and prints tokens and the times to the first."""

    async def one(i: int) -> tuple[int, list[float]]:
        made, first = 0, list[float]()
        for k in range(requests):
            number = random.getrandbits(30)
            got, _, times = await serving.over_http(ports[(i + k) % len(ports)], 1, tokens, number)
            made, first = made + got, first + times
        return made, first

    async def run() -> None:
        found = await asyncio.gather(*(one(i) for i in range(clients)))
        firsts = list(chain.from_iterable(first for _, first in found))
        print(json.dumps([sum(made for made, _ in found), firsts]), flush=True)

    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(run())


@contextmanager
def clients(ports: list[int], count: int, tokens: int, requests: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of clients that begin together; those of several ports have one each."""
    each = [[port] for port in ports] if len(ports) > 1 else [ports] * -(-count // PER_PROCESS)
    started = []
    for i, own in enumerate(each):
        n = count * (i + 1) // len(each) - count * i // len(each)
        command = [sys.executable, __file__, "--client", json.dumps([own, n, tokens, requests])]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def load(label: str, ports: list[int], count: int, a: Any, processes: Sequence[int] = ()) -> dict[str, float]:
    """Streams until every client has had its answers; the CPU time is that of `processes`."""
    cpu = {pid: serving.cpu_seconds(pid) for pid in processes}
    with clients(ports, count, a.tokens, a.requests) as started:
        began = perf_counter()
        lines = [json.loads(process.communicate(timeout=DEADLINE_S)[0]) for process in started]
        seconds = perf_counter() - began
    spent = [sum(serving.since(before, pid)[i] for pid, before in cpu.items()) for i in range(2)]
    firsts = list(chain.from_iterable(t for _, t in lines))
    return serving.summary(label, sum(n for n, _ in lines), seconds, firsts, spent)


def ingresses() -> list[int]:
    """The process that runs as this cluster's ingress."""
    from ray.util import list_named_actors

    return [pid_of(actor) for actor in list_named_actors(all_namespaces=True) if "Ingress#" in actor["name"]]


def pid_of(actor: dict[str, str]) -> int:
    """Of a named actor."""
    import ray

    handle = ray.get_actor(actor["name"], actor["namespace"])
    return int(ray.get(handle.__ray_call__.remote(lambda self: os.getpid()), timeout=30))


@contextmanager
def servers(n: int, a: Any) -> Iterator[list[int]]:
    """The ports of `n` servers without Ray."""
    command = [sys.executable, "-c", "from llcuda_ffi.cli import main; main()", "serve", a.path, "--port", "0"]
    command += ["--alias", "model", "--ctx", str(a.settings["n_ctx"]), "--parallel", str(a.parallel)]
    command += ["--device", a.device] + ([] if a.gpus else ["--threads", str(a.threads)])
    started = []
    try:
        for i in range(n):
            more = {"CUDA_VISIBLE_DEVICES": str(i)} if a.gpus else {}
            pipe = subprocess.PIPE
            started.append(
                subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=os.environ | more)
            )
        yield [serving.listening(server) for server in started]
    finally:
        for server in started:
            server.terminate()
        for server in started:
            server.communicate()


def deploy(replicas: int | tuple[int, int], a: Any, **more: Any) -> None:
    """Run the application, or change the one that runs, until its replicas are there."""
    from ray import serve

    from llcuda_ffi.pipelines.serve import application

    serve.run(
        application(
            a.path, replicas=replicas, parallel=a.parallel, num_cpus=1 if a.gpus else a.threads, num_gpus=a.gpus,
            name="model", settings=a.settings, **more,
        )
    )  # fmt: skip
    while running() > (replicas if isinstance(replicas, int) else replicas[0]):  # some may have to go
        sleep(0.2)
    with clients([a.port], 2 * a.parallel, 8, 1) as started:  # warm
        for process in started:
            process.communicate(timeout=DEADLINE_S)


def running() -> int:
    """Replicas that answer."""
    from ray import serve

    states = serve.status().applications["default"].deployments["Replica"].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


def post(a: Any, path: str, **fields: Any) -> tuple[int, bytes]:
    """An answer's status and body."""
    body = json.dumps({"model": "model", "ignore_eos": True, **fields}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{a.port}{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, repr(error).encode()


def sessions(n: int, a: Any) -> float:
    """The share of later turns' prompts that was in a cache."""

    def talk(session: int) -> tuple[int, int]:
        cached = asked = 0
        messages: list[dict[str, str]] = []
        for turn in range(TURNS):
            text = serving.prompt(1000 * session + turn, a.tokens if not turn else 16)
            messages.append({"role": "user", "content": text})
            status, body = post(a, "/v1/chat/completions", messages=messages, max_tokens=16)
            if status != 200:
                raise RuntimeError(body.decode())
            answer = json.loads(body)
            if turn:
                asked += answer["usage"]["prompt_tokens"]
                cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] or ""})
        return cached, asked

    count = max(1, n * a.parallel // 2)
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(talk, range(n * 1000, n * 1000 + count)))
    share = sum(cached for cached, _ in found) / sum(asked for _, asked in found)
    print(f"  {n} replicas, {count} sessions of {TURNS} turns: {share:.1%} of later prompts cached", flush=True)
    return share


def kill(n: int, a: Any) -> dict[str, float]:
    """Requests under way while a replica is killed, and how many were lost."""
    from ray.util import list_named_actors

    victim = pid_of(next(actor for actor in list_named_actors(all_namespaces=True) if "Replica#" in actor["name"]))
    count = 2 * n * a.parallel
    begun = threading.Event()

    def ask(i: int) -> bool:
        stream = i % 2 == 0
        if i >= count // 4:
            begun.wait()  # these come while the others run, before and after the end of the replica
            sleep(3 * i / count)
        prompt = serving.prompt(i, a.tokens)
        more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        status, body = post(a, "/v1/completions", prompt=prompt, max_tokens=2 * a.tokens, **more)
        made = b'"completion_tokens":%d' % (2 * a.tokens)
        good = status == 200 and made in body and b'"error"' not in body and (not stream or b"[DONE]" in body)
        if not good:
            print("  lost:", status, body[-300:], flush=True)
        return good

    with ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(ask, i) for i in range(count)]
        begun.set()
        sleep(1)
        os.kill(victim, signal.SIGKILL)
        began = perf_counter()
        lost = sum(not answer.result() for answer in answers)
    while running() < n and perf_counter() - began < DEADLINE_S:
        sleep(0.2)
    found = {"requests": count, "lost": lost, "replaced_s": perf_counter() - began}
    print(f"  a replica of {n} killed: {lost} of {count} lost, a new one after {found['replaced_s']:.1f} s", flush=True)
    return found


def autoscale(most: int, a: Any) -> dict[str, float]:
    """Seconds under load until all replicas run."""
    quick = {"upscale_delay_s": 1, "look_back_period_s": 2, "metrics_interval_s": 0.5}
    deploy((1, most), a, autoscaling=quick)
    began = perf_counter()
    found: dict[str, float] = {"before": running(), "most": most}
    with clients([a.port], 2 * most * a.parallel, a.tokens, 1000):
        while running() < most and perf_counter() - began < DEADLINE_S / 2:
            sleep(0.2)
        found |= {"after": running(), "seconds": perf_counter() - began}
    print(f"  under load {found['before']} to {found['after']} replicas in {found['seconds']:.1f} s", flush=True)
    return found


def scaling(n: int, a: Any) -> dict[str, Any]:
    """Through Ray, where the application runs; and without Ray."""
    count = 3 * n * a.parallel // 2
    return {"ray": [load(f"{n} replicas, {count} clients", [a.port], count, a, ingresses()) for _ in range(a.rounds)]}


def alone(n: int, a: Any) -> list[dict[str, float]]:
    """The same clients at `n` servers."""
    count = 3 * n * a.parallel // 2
    with servers(n, a) as ports:
        with clients(ports, count, 8, 1) as started:
            for process in started:
                process.communicate(timeout=DEADLINE_S)
        return [load(f"{n} servers without Ray, {count} clients", ports, count, a) for _ in range(a.rounds)]


def main() -> None:
    p = report.parser(__doc__, rounds=2)
    p.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    p.add_argument("--parallel", type=int, default=8, help="slots of a replica")
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--requests", type=int, default=4, help="of each client, in turn")
    p.add_argument("--device", default="cpu")
    p.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    p.add_argument("--port", type=int, default=18400)
    p.add_argument("--temp-dir", default="/tmp/r", help="Ray's files; its sockets need a short path")
    p.add_argument("--client", help="internal")
    a = p.parse_args()
    if a.client:
        client(*json.loads(a.client))
        return
    import ray
    from ray import serve

    a.gpus = int(a.device != "cpu")
    a.settings = {"n_ctx": 8 * a.tokens + 512}
    with Llama(a.model, n_ctx=64, n_parallel=1, device="cpu") as llm:
        a.path = str(llm.model.path)
        settings = {"model": llm.model.path.name, "device": a.device, "parallel": a.parallel, "tokens": a.tokens}
        settings |= {"requests": a.requests, "threads": a.threads, "ray": ray.__version__}
        settings["haproxy"] = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
        out = report.header("cluster", llm.model.library, settings)
    most = max(a.replicas)
    out["ray"], out["alone"], out["cached"] = {}, {}, {}
    if "scaling" in a.only:
        out["alone"] = {n: alone(n, a) for n in a.replicas}
    ray.init(
        address="local", num_cpus=max(8, 2 * most * a.threads), num_gpus=most * a.gpus, include_dashboard=False,
        log_to_driver=False, logging_level="error", _temp_dir=a.temp_dir, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": a.port})
        if "autoscale" in a.only and most > 1:
            out["autoscale"] = autoscale(most, a)
        for n in a.replicas:
            deploy(n, a)
            if "scaling" in a.only:
                out["ray"][n] = scaling(n, a)["ray"]
            if "sessions" in a.only:
                out["cached"][n] = sessions(n, a)
            if "kill" in a.only and n == most > 1:
                out["kill"] = kill(n, a)
        report.write(out, a.json)  # what there is, should the rest fail
    finally:
        serve.shutdown()
        ray.shutdown()
    if "scaling" in a.only:
        compare(out)
    report.write(out, a.json)


def compare(out: dict[str, Any]) -> None:
    """Of linear, with Ray and without, and of what is without; medians."""

    def rate(rounds: list[dict[str, float]]) -> float:
        return float(report.spread([one["tokens_per_s"] for one in rounds])["median"])

    least = min(out["ray"])
    out["ratios"] = {}
    for n in out["ray"]:
        with_ray, without = rate(out["ray"][n]), rate(out["alone"][n])
        out["ratios"][n] = found = {
            "tokens_per_s": with_ray,
            "without_ray": without,
            "of_linear": with_ray / rate(out["ray"][least]) * least / n,
            "of_linear_without_ray": without / rate(out["alone"][least]) * least / n,
            "of_without_ray": with_ray / without,
        }
        if n in out["cached"]:
            found["cached"] = out["cached"][n]
        print(f"  {n}: " + ", ".join(f"{key} {value:,.2f}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
