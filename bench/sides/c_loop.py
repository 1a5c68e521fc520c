"""The floor: minimal loops of C calls over the same library (bench/raw.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raw import RawLoop
from worker import TEMPERATURE, TOP_K, TOP_P, Side, serve

from llcuda_ffi import Model, SamplingParams

PARAMS = SamplingParams(temperature=TEMPERATURE, top_k=TOP_K, top_p=TOP_P, min_p=0.0, ignore_eos=True)


class Raw(Side):
    """llama_decode and llama_sampler_sample, nothing else."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        self._model = Model.load(Path(model))
        parallel = int(extra.get("parallel", 16))
        self._loop = RawLoop(self._model, n_ctx=2048, n_parallel=parallel, n_threads=threads)

    def version(self) -> str:
        return f"loop of C calls, {self._model.library.bundle.name}"

    def _tokens(self, text: str) -> list[int]:
        return [int(token) for token in self._model.vocab.tokenize(text)]

    def prefill(self, text: str) -> int:
        tokens = self._tokens(text)
        self._loop.run_one(tokens, 1, PARAMS)
        return len(tokens)

    def decode(self, text: str, n: int) -> int:
        return len(self._loop.run_one(self._tokens(text), n, PARAMS))

    def batch(self, texts: Sequence[str], n: int) -> int:
        return sum(map(len, self._loop.run([self._tokens(text) for text in texts], n, PARAMS)))


if __name__ == "__main__":
    serve(Raw)
