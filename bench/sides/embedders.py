"""Packages that only embed: sentence-transformers, or (extra "onnx") onnxruntime with an int8 model."""

from __future__ import annotations

from collections.abc import Sequence

import embeddings_peers
from worker import Side, serve


class Embedders(Side):
    """One of the two, as bench/embeddings_peers.py calls it."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        onnx = "onnx" in extra
        encode = (embeddings_peers.onnx_int8 if onnx else embeddings_peers.sentence_transformers)(threads)
        if encode is None:
            raise ModuleNotFoundError("a package that it needs is not installed")
        self._encode, self._name = encode, "onnxruntime" if onnx else "sentence-transformers"

    def version(self) -> str:
        from importlib.metadata import version

        return f"{self._name} {version(self._name)}" + (", int8" if self._name == "onnxruntime" else "")

    def embed(self, texts: Sequence[str]) -> int:
        self._encode(list(texts))
        return len(texts)


if __name__ == "__main__":
    serve(Embedders)
