"""The `llm` command line: every embedding model of the registry that is in the cache or can be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import llm

from ..hub.registry import all_models


class LlcudaEmbeddingModel(llm.EmbeddingModel):  # type: ignore[misc]
    """One registry name; loaded at the first use."""

    supports_text = True
    supports_binary = False
    batch_size = 512

    def __init__(self, name: str) -> None:
        self.model_id = f"llcuda-ffi/{name}"
        self._name = name
        self._embedder: Any = None

    def embed_batch(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        """Vectors of texts."""
        if self._embedder is None:
            from ..embedder import Embedder

            self._embedder = Embedder(self._name)
        texts = [item if isinstance(item, str) else item.decode("utf-8", "replace") for item in items]
        yield from self._embedder.encode(texts, truncate=True).tolist()


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_embedding_models(register: Callable[[Any], None]) -> None:
    """Called by llm."""
    for model in all_models():
        if model.convert_wheel:
            register(LlcudaEmbeddingModel(model.name))
