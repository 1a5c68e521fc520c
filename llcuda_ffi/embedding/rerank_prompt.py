"""The prompt by which a language model judges a document: `tokenizer.chat_template.rerank` of its file."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from ..core.vocab import Vocab
from ..enums import TokenAttr

Tokens = npt.NDArray[np.int32]

_PLACES = re.compile(r"\{(query|document)\}")


class RerankPrompt:
    """A template with the places {query} and {document}. Control tokens come from the template alone."""

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
