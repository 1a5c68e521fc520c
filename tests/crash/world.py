"""What the rows of the crash table misuse, and how a row is registered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.sampler import SamplerChain

from ..support.tiny_architectures import TINY
from ..support.tiny_model import TinyFile

Row = Callable[["World"], None]
ROWS: dict[str, Row] = {}


def row(function: Row) -> Row:
    """Register a row under its function's name."""
    ROWS[function.__name__] = function
    return function


def refuses(kind: type[BaseException], call: Callable[[], object]) -> None:
    """The call raises `kind`, and nothing else."""
    try:
        result = call()
    except kind:
        return
    raise AssertionError(f"{result!r:.80} came back, expected {kind.__name__}")


class World:
    """What the rows misuse: tiny models, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models: dict[str, Model] = {}
        self._files = 0
        self.expected = self.answer()

    def model(self, name: str = "llama") -> Model:
        """The tiny model of that name, loaded once."""
        if name not in self._models:
            self._models[name] = self.load(TINY[name](), name)
        return self._models[name]

    def load(self, file: TinyFile, name: str, **settings: Any) -> Model:
        """Load a model; each from a file of its own, for a mapped file must not change."""
        self._files += 1
        path = self.folder / f"{name}-{self._files}.gguf"
        file.write(path)
        return Model.load(path, **settings)

    def context(self, name: str = "llama", **settings: Any) -> Context:
        return Context(self.model(name), **{"n_ctx": 64, "n_batch": 32, "n_threads": 1, **settings})

    def decoded(self, name: str = "llama", tokens: int = 4, **settings: Any) -> Context:
        """A context that holds a few tokens of sequence 0, the last with logits."""
        context = self.context(name, **settings)
        context.decode(self.batch(tokens))
        return context

    @staticmethod
    def batch(tokens: int = 4, pos: int = 0, seq: int = 0, *, output: str = "last") -> Batch:
        batch = Batch(max(tokens, 1), 4)
        batch.extend(np.arange(1, tokens + 1, dtype=np.int32), pos, seq, output=output)
        return batch

    def answer(self) -> list[int]:
        """What the model says, greedily."""
        with self.decoded() as context:
            chain = SamplerChain(self.model()).greedy()
            out = []
            for i in range(4):
                out.append(chain.sample(context))
                batch = Batch(1)
                batch.add(out[-1], 4 + i, output=True)
                context.decode(batch)
            return out
