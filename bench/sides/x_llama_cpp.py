"""xllamacpp: llama-server in the process, as its wheel has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from worker import TEMPERATURE, TOP_K, TOP_P, Side, serve


class XLlamaCpp(Side):
    """Its Server class."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        import xllamacpp

        self._package: Any = xllamacpp
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_parallel = int(extra.get("parallel", 16))
        params.n_ctx = 2048 * params.n_parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(params)

    def version(self) -> str:
        return f"xllamacpp {getattr(self._package, '__version__', '')}".strip()

    @staticmethod
    def _body(text: str, n: int, **more: Any) -> dict[str, Any]:
        return {
            "prompt": text, "max_tokens": n, "temperature": TEMPERATURE, "top_k": TOP_K, "top_p": TOP_P, "min_p": 0.0,
            "ignore_eos": True, "cache_prompt": False, **more,
        }  # fmt: skip

    def _ask(self, text: str, n: int, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._server.handle_completions(self._body(text, n, **more))
        if "error" in found:
            raise RuntimeError(str(found["error"]))
        return found

    def prefill(self, text: str) -> int:
        return int(self._ask(text, 1)["usage"]["prompt_tokens"])

    def decode(self, text: str, n: int) -> int:
        return int(self._ask(text, n)["usage"]["completion_tokens"])

    def batch(self, texts: Sequence[str], n: int) -> int:
        with ThreadPoolExecutor(len(texts)) as pool:
            return sum(pool.map(lambda text: self.decode(text, n), texts))

    def again(self, text: str) -> int:
        return int(self._ask(text, 1, cache_prompt=True)["usage"]["prompt_tokens"])

    def structured(self, text: str, schema: dict[str, Any], n: int) -> int:
        return int(self._ask(text, n, json_schema=schema, ignore_eos=False)["usage"]["completion_tokens"])

    def stream(self, text: str, n: int, came: Callable[[], object]) -> None:
        self._server.handle_completions(self._body(text, n, stream=True), lambda _: came() and False)


if __name__ == "__main__":
    serve(XLlamaCpp)
