"""The methods about embeddings of llama-cpp-python's Llama."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...embedder import Embedder
from ...embedding.vectors import normalized
from ...enums import PoolingType
from ...errors import UnsupportedModel
from ...gguf import GGUFReader
from ...hub.references import resolve
from . import results
from .settings import flash_attention, model_params


class Embeddings:
    """Texts to vectors, of a Llama with embedding=True."""

    if TYPE_CHECKING:
        model_path: str
        _settings: dict[str, Any]
        _embedder: Embedder | None

    @property
    def embedder(self) -> Embedder:
        """The llcuda_ffi.Embedder behind `embed`.

        Raises:
            UnsupportedModel: it was made without embedding=True.
        """
        if self._embedder is None:
            given = self._settings
            if not given.get("embedding"):
                raise UnsupportedModel("embeddings need Llama(..., embedding=True), or llcuda_ffi.Embedder(model)")
            layers, flash = given.get("n_gpu_layers"), flash_attention(given)
            self._embedder = Embedder(
                self.model_path,
                pooling=self._pooling,
                device=given.get("device") or "auto",
                n_gpu_layers="auto" if layers is None else layers,
                n_threads=given.get("n_threads") or None,
                flash_attn=None if flash == "auto" else bool(flash),
                model_params=model_params(given),
            )
        return self._embedder

    def pooling_type(self) -> PoolingType:
        """How the vectors of a text's tokens become one: as was asked, else as the model's file says; where that says
        nothing they do not (NONE)."""
        return self._pooling

    @cached_property
    def _pooling(self) -> PoolingType:
        asked = self._settings.get("pooling_type")
        if asked is not None and asked != PoolingType.UNSPECIFIED:
            return PoolingType(asked)
        with GGUFReader(resolve(self.model_path)) as reader:
            stated = reader.metadata.get(f"{reader.architecture}.pooling_type")
        return PoolingType(stated) if stated in list(PoolingType) else PoolingType.NONE

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> dict[str, Any]:
        """Embeddings as a dict in OpenAI's form; not normalized."""
        texts = [input] if isinstance(input, str) else list(input)
        vectors, n_tokens = self.embed(texts, return_count=True)
        return results.embedding_dict(model or self.model_path, vectors, n_tokens)

    def embed(
        self,
        input: str | Sequence[str],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Embeddings as lists of numbers: one, or one for each text. Of a model that does not pool (`pooling_type`),
        which most that generate are, each is a list with one for each token."""
        if not isinstance(input, str):
            input = list(input)
        embedder = self.embedder
        if self._pooling == PoolingType.NONE:
            found = embedder.encode_tokens(input, truncate=truncate)
            rows = [found] if isinstance(found, np.ndarray) else found
            lists = [(normalized(one) if normalize else one).tolist() for one in rows]
            vectors = lists[0] if isinstance(input, str) else lists
        else:
            vectors = embedder.encode(input, normalize=normalize, truncate=truncate).tolist()
        if not return_count:
            return vectors
        texts = [input] if isinstance(input, str) else input
        return vectors, sum(min(len(embedder.tokenize(text)), embedder.max_tokens) for text in texts)
