"""LangChain: an Embeddings over Embedder."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings

from ..embedder import Embedder


class LlcudaEmbeddings(Embeddings):  # type: ignore[misc]
    """LangChain's Embeddings; the model's prompts "document" and "query" are used where it has them."""

    def __init__(self, model: str | Embedder, **options: Any) -> None:
        """Take an Embedder, or make one of a model and Embedder's arguments."""
        self.embedder = model if isinstance(model, Embedder) else Embedder(model, **options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents."""
        return self._encode(texts, "document")

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._encode([text], "query")[0]

    def _encode(self, texts: list[str], prompt: str) -> list[list[float]]:
        known = prompt if prompt in self.embedder.prompts else None
        found: list[list[float]] = self.embedder.encode(texts, prompt=known, truncate=True).tolist()
        return found
