"""Scores of documents for a query, by models with a classification head (rank pooling)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.vocab import Vocab
from ..enums import PoolingType, TokenAttr
from ..errors import InvalidRequest, UnsupportedModel
from ..keywords import names_methods, names_unknown
from ..params import integer
from .text_model import TextModel, check_texts

Tokens = npt.NDArray[np.int32]

_PLACES = re.compile(r"\{(query|document)\}")


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


class RerankPrompt:
    """The prompt by which a language model judges a document: `tokenizer.chat_template.rerank` of its file.

    The template has the places {query} and {document}. Control tokens come from it alone.
    """

    def __init__(self, vocab: Vocab, template: str) -> None:
        self._vocab = vocab
        controls = {
            vocab.piece(token, special=True).decode("utf-8", "replace"): token
            for token in range(vocab.n_tokens)
            if vocab.attributes(token) & TokenAttr.CONTROL
        }
        marks = "|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True) if text)
        pieces = re.split(f"({marks})", template) if marks else [template]
        self._parts = [controls[piece] if i % 2 else piece for i, piece in enumerate(pieces) if piece]

    def tokens(self, query: str, document: str, longest: int | None = None) -> Tokens:
        """The token ids of a pair; with `longest` the document is cut so that they are no more."""
        ids = self._tokens(query, document)
        if longest is None or len(ids) <= longest:
            return ids
        words = self._vocab.tokenize(document, add_special=False)
        kept = len(words) - (len(ids) - longest)
        while kept > 0 and len(ids) > longest:
            ids = self._tokens(query, self._vocab.detokenize(words[:kept]))
            kept -= 1
        return ids

    def _tokens(self, query: str, document: str) -> Tokens:
        texts = {"query": query, "document": document}
        found: list[Tokens] = []
        for part in self._parts:
            if isinstance(part, int):
                found.append(np.array([part], np.int32))
            else:
                text = _PLACES.sub(lambda place: texts[place[1]], part)
                found.append(self._vocab.tokenize(text, add_special=False))
        return np.concatenate(found)


@names_methods
@names_unknown
class Reranker(TextModel):
    """A model with a classification head, which scores documents for a query.

    Safe to use from many threads; their texts share batches. The arguments are those of Embedder, without `pooling`.

    Attributes:
        model: the loaded model.
        max_tokens: most tokens of query and document together.
    """

    def _suits(self) -> None:
        stated = self.model.metadata.get(f"{self.model.architecture}.pooling_type")
        if stated != str(PoolingType.RANK.value):
            raise UnsupportedModel(
                f"{self.model.path.name} has no classification head (rank pooling): use a reranker model"
            )
        template = self.model.chat_template("rerank")
        self._prompt = RerankPrompt(self.model.vocab, template) if template else None

    def scores(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> npt.NDArray[np.float32]:
        """The model's raw score of each document, float32 of shape (n,), in their order.

        Args:
            truncate: cut documents that are too long instead of raising.

        Raises:
            ContextOverflow: query and document are too long; the message names the document's index.
            InvalidRequest: an argument is of the wrong type.
            ClosedError: the reranker is closed.
        """
        queue = self._queue(PoolingType.RANK)
        if not isinstance(query, str):
            raise InvalidRequest(f"query must be a str, not {type(query).__name__}")
        with self._call():
            pairs = [
                self._fit(self._pair(query, document, truncate), i, truncate, "document")
                for i, document in enumerate(check_texts(documents))
            ]
        if not pairs:
            return np.empty(0, np.float32)
        found = queue.compute(pairs, self.batch_tokens)
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

    def _pair(self, query: str, document: str, truncate: bool) -> npt.NDArray[np.int32]:
        """The model's own prompt; else [BOS] query [EOS] [SEP] document [EOS], each mark that the model asks for."""
        if self._prompt is not None:
            return self._prompt.tokens(query, document, self.max_tokens if truncate else None)
        vocab, metadata = self.model.vocab, self.model.metadata
        key = "tokenizer.ggml.add_{}_token"
        bert = metadata.get("tokenizer.ggml.model") == "bert"

        def mark(name: str, default: bool) -> list[int]:
            asked = metadata.get(key.format(name))
            token = vocab.special(name)
            return [token] if token is not None and (default if asked is None else asked == "true") else []

        end = mark("eos", bert) or (mark("sep", bert) if bert else [])
        parts: list[Any] = [mark("bos", bert), self._tokens(query, False), end]
        parts += [[] if end and bert else mark("sep", bert), self._tokens(document, False), end]
        return np.concatenate([np.asarray(part, np.int32) for part in parts])
