"""LlamaIndex: an embedding model over Embedder."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from ..embedder import Embedder


class LlcudaEmbedding(BaseEmbedding):  # type: ignore[misc]
    """LlamaIndex's embedding; the model's prompts "document" and "query" are used where it has them."""

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: str | Embedder, *, embed_batch_size: int = 512, **options: Any) -> None:
        """Take an Embedder, or make one of a model and Embedder's arguments."""
        embedder = model if isinstance(model, Embedder) else Embedder(model, **options)
        super().__init__(model_name=embedder.model.path.name, embed_batch_size=embed_batch_size)
        self._embedder = embedder

    def _encode(self, texts: list[str], prompt: str) -> list[list[float]]:
        known = prompt if prompt in self._embedder.prompts else None
        found: list[list[float]] = self._embedder.encode(texts, prompt=known, truncate=True).tolist()
        return found

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._encode([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        import asyncio

        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._encode([text], "document")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._encode(texts, "document")
