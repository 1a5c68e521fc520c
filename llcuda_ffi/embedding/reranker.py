"""Scores of documents for a query, by models with a classification head (rank pooling)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..bundle import InstalledBundle
from ..core.model import Model
from ..enums import PoolingType
from ..errors import ClosedError, InvalidRequest, UnsupportedModel
from ..params import ModelParams, integer
from .backend import Backend, check_texts

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Ranked:
    """One document and its score.

    Attributes:
        index: its place in the list that was given.
        score: the model's raw output; larger fits better.
        document: the text.
    """

    index: int
    score: float
    document: str


class Reranker:
    """A model that scores documents for a query. Safe to use from many threads; their texts share batches.

    Attributes:
        model: the loaded model.
        max_tokens: most tokens of query and document together.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        *,
        device: str = "auto",
        n_gpu_layers: int | Literal["auto"] = "auto",
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
        n_threads: int | None = None,
        n_contexts: int | None = None,
        flash_attn: bool | None = None,
        bundle: str | InstalledBundle | None = None,
        model_params: ModelParams | None = None,
    ) -> None:
        """Load a model with a classification head; the arguments are those of Embedder.

        Raises:
            UnsupportedModel: it has none.
            ModelNotFound, InvalidModelFile, ModelError: the model cannot be used.
            InvalidRequest: an argument is out of range.
        """
        self._backend = Backend(
            model,
            device=device,
            n_gpu_layers=n_gpu_layers,
            max_tokens=max_tokens,
            batch_tokens=batch_tokens,
            n_threads=n_threads,
            n_contexts=n_contexts,
            flash_attn=flash_attn,
            bundle=bundle,
            model_params=model_params,
        )
        self.model = self._backend.model
        self.max_tokens = self._backend.max_tokens
        self._closed = False
        self._lock = threading.Lock()
        stated = self.model.metadata.get(f"{self.model.architecture}.pooling_type")
        if stated != str(PoolingType.RANK.value):
            name = self.model.path.name
            self.close()
            raise UnsupportedModel(f"{name} has no classification head (rank pooling): use a reranker model")

    def scores(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> npt.NDArray[np.float32]:
        """The model's raw score of each document, float32 of shape (n,), in their order.

        Args:
            truncate: cut documents that are too long instead of raising.

        Raises:
            ContextOverflow: query and document are too long; the message names the document's index.
            InvalidRequest: an argument is of the wrong type.
            ClosedError: the reranker is closed.
        """
        if self._closed:
            raise ClosedError("the reranker is closed")
        if not isinstance(query, str):
            raise InvalidRequest(f"query must be a str, not {type(query).__name__}")
        pairs = [
            self._backend.fit(self._pair(query, document), i, truncate, "document")
            for i, document in enumerate(check_texts(documents))
        ]
        if not pairs:
            return np.empty(0, np.float32)
        with self._lock:
            queue = self._backend.queue(PoolingType.RANK)
        found = queue.compute(pairs, self._backend.batch_tokens)
        return np.array([row[0] for row in found], np.float32)

    def rank(
        self, query: str, documents: Sequence[str], *, top_k: int | None = None, truncate: bool = False
    ) -> list[Ranked]:
        """Documents, best first.

        Raises:
            as `scores`.
        """
        texts = check_texts(documents)
        scores = self.scores(query, texts, truncate=truncate)
        order = np.argsort(-scores, kind="stable")
        if top_k is not None:
            order = order[: integer("top_k", top_k, 1, 1 << 31)]
        return [Ranked(int(i), float(scores[i]), texts[i]) for i in order]

    def _pair(self, query: str, document: str) -> npt.NDArray[np.int32]:
        """[BOS] query [EOS] [SEP] document [EOS], each mark where the model has it and asks for it."""
        vocab, metadata = self.model.vocab, self.model.metadata
        key = "tokenizer.ggml.add_{}_token"
        bert = metadata.get("tokenizer.ggml.model") == "bert"

        def mark(name: str, default: bool) -> list[int]:
            asked = metadata.get(key.format(name))
            token = vocab.special(name)
            return [token] if token is not None and (default if asked is None else asked == "true") else []

        end = mark("eos", bert) or (mark("sep", bert) if bert else [])
        parts: list[Any] = [mark("bos", bert), self._backend.tokenize(query, False), end]
        parts += [[] if end and bert else mark("sep", bert), self._backend.tokenize(document, False), end]
        return np.concatenate([np.asarray(part, np.int32) for part in parts])

    def close(self) -> None:
        """Free everything."""
        if not self._closed:
            self._closed = True
            self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
