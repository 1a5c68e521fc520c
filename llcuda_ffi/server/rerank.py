"""POST /v1/rerank (Jina, Cohere, llama.cpp, Text Embeddings Inference) and /v1/score (vLLM)."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..embedding.reranker import Reranker
from ..errors import InvalidRequest
from .events import while_connected
from .state import Asked, ServerState

_MOST = 2048


class Rerank:
    """The endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def rerank(self, request: Request) -> Response:
        """Documents, best first: `results` with `index` and `relevance_score`; for TEI's `texts` a bare list."""
        async with self._state.asked(request, "rerank") as asked:
            fields, model = asked.fields, asked.model
            query = fields.text("query")
            bare = "texts" in fields
            documents = _texts(fields.items("texts" if bare else "documents", _MOST), "documents")
            top = fields.integer("top_n", 1, 1 << 30, fields.integer("top_k", 1, 1 << 30))
            shown = fields.flag("return_documents", False) or fields.flag("return_text", False)
            raw = fields.flag("raw_scores", False) or not bare
            truncate = fields.flag("truncate", False)
            for name in ("user", "truncation_direction", "max_tokens_per_doc", "max_chunks_per_doc"):
                fields.take(name)
            fields.end()
            scores, tokens = await _scores(asked, [(query, d) for d in documents], truncate)
        if not raw:
            scores = 1 / (1 + np.exp(-scores))
        order = np.argsort(-scores, kind="stable")[:top].tolist()
        if bare:
            found = [{"index": i, "score": float(scores[i])} for i in order]
            return JSONResponse([{**f, "text": documents[f["index"]]} if shown else f for f in found])
        results = [{"index": i, "relevance_score": float(scores[i])} for i in order]
        if shown:
            results = [{**r, "document": {"text": documents[r["index"]]}} for r in results]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": model.name, "results": results, "usage": usage})

    async def score(self, request: Request) -> Response:
        """A score for each pair of `text_1` and `text_2`; one text may stand for all pairs."""
        async with self._state.asked(request, "rerank") as asked:
            fields, model = asked.fields, asked.model
            first, second = _texts(fields.take("text_1"), "text_1"), _texts(fields.take("text_2"), "text_2")
            if len(first) == 1:
                first = first * len(second)
            if len(first) != len(second):
                raise InvalidRequest(f"text_1 has {len(first)} texts, text_2 {len(second)}: give as many, or one")
            truncate = fields.flag("truncate", False)
            for name in ("user", "encoding_format"):
                fields.take(name)
            fields.end()
            scores, tokens = await _scores(asked, list(zip(first, second, strict=True)), truncate)
        data = [{"index": i, "object": "score", "score": float(score)} for i, score in enumerate(scores)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": model.name, "data": data, "usage": usage})


async def _scores(asked: Asked, pairs: list[tuple[str, str]], truncate: bool) -> tuple[np.ndarray, int]:
    """The score of each pair, and how many tokens the texts have."""
    asked.enter()
    work = asyncio.to_thread(_score, asked.model.reranker(), pairs, truncate)
    return await while_connected(asked.request.receive, work)


def _score(reranker: Reranker, pairs: list[tuple[str, str]], truncate: bool) -> tuple[np.ndarray, int]:
    scores = np.zeros(len(pairs), np.float32)
    for query in dict.fromkeys(query for query, _ in pairs):
        places = [i for i, pair in enumerate(pairs) if pair[0] == query]
        scores[places] = reranker.scores(query, [pairs[i][1] for i in places], truncate=truncate)
    vocab = reranker.model.vocab
    texts = [text for pair in pairs for text in pair]
    return scores, sum(len(vocab.tokenize(text, add_special=False)) for text in texts)


def _texts(value: Any, name: str) -> list[str]:
    """Texts; Cohere's documents may be objects with a text."""
    items = [value] if isinstance(value, (str, dict)) else value
    if not isinstance(items, list) or not items or len(items) > _MOST:
        raise InvalidRequest(f"{name} must be a text or 1 to {_MOST} texts, not {value!r:.60}")
    texts = []
    for i, item in enumerate(items):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise InvalidRequest(f"{name}[{i}] must be a text, not {item!r:.60}")
        texts.append(text)
    return texts
