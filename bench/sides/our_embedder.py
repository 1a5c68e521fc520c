"""This package's Embedder, in a process that has no Llama."""

from __future__ import annotations

from collections.abc import Sequence

from worker import Side, serve

import llcuda_ffi
from llcuda_ffi import Embedder


class OurEmbedder(Side):
    """The libraries that an Embedder chooses, as many contexts of one thread as there may be threads."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        self._embedder = Embedder(extra["embedding"], n_threads=1, n_contexts=threads)

    def version(self) -> str:
        return f"llcuda_ffi {llcuda_ffi.__version__}, {self._embedder.model.library.bundle.name}"

    def embed(self, texts: Sequence[str]) -> int:
        return len(self._embedder.encode(list(texts)))


if __name__ == "__main__":
    serve(OurEmbedder)
