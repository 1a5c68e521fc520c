"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...core.vocab import Vocab
from ...errors import InvalidRequest
from ..served_model import ServedModel
from ..state import ServerState


class Tokens:
    """The endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def tokenize(self, request: Request) -> Response:
        """Text to token ids; vLLM's names are taken too."""
        state = self._state
        fields = await state.read(request)
        async with state.models.use(state.models.find(fields.take("model"))) as model:
            vocab = _vocab(model)
            text = fields.text("content" if "content" in fields or "prompt" not in fields else "prompt")
            special = fields.flag("add_special_tokens", fields.flag("add_special", False))
            parse = fields.flag("parse_special", True)
            pieces = fields.flag("with_pieces", False)
            fields.end()

            def work() -> list[Any]:
                ids: list[int] = vocab.tokenize(text, add_special=special, parse_special=parse).tolist()
                return [{"id": t, "piece": _piece(vocab.piece(t, special=True))} for t in ids] if pieces else ids

            with state.gate.enter():
                tokens = await asyncio.to_thread(work)
        return JSONResponse({"tokens": tokens, "count": len(tokens)})

    async def detokenize(self, request: Request) -> Response:
        """Token ids to text."""
        state = self._state
        fields = await state.read(request)
        async with state.models.use(state.models.find(fields.take("model"))) as model:
            vocab = _vocab(model)
            ids = fields.items("tokens")
            fields.end()
            if ids is None or not all(type(t) is int for t in ids):
                raise InvalidRequest("tokens must be a list of token ids")
            with state.gate.enter():
                text = await asyncio.to_thread(vocab.detokenize, ids, special=True)
        return JSONResponse({"content": text})


def _vocab(model: ServedModel) -> Vocab:
    """The vocabulary of a loaded model of any kind."""
    if model.kind == "text":
        return model.text().llama.vocab
    return (model.embedder() if model.kind == "embedding" else model.reranker()).model.vocab


def _piece(piece: bytes) -> str | list[int]:
    """A text, or the bytes of what is none."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
