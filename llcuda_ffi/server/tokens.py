"""POST /tokenize and /detokenize, as llama-server has them."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import InvalidRequest
from .body import read_body
from .models import Served


class Tokens:
    """The endpoints."""

    def __init__(self, served: Served, limit: int) -> None:
        self._served, self._limit = served, limit

    async def tokenize(self, request: Request) -> Response:
        """Text to token ids."""
        fields = await read_body(request, self._limit)
        vocab = self._served.text(fields.take("model")).llama.vocab
        text = fields.text("content")
        special, parse = fields.flag("add_special", False), fields.flag("parse_special", True)
        fields.end()
        ids = await asyncio.to_thread(lambda: vocab.tokenize(text, add_special=special, parse_special=parse))
        return JSONResponse({"tokens": ids.tolist()})

    async def detokenize(self, request: Request) -> Response:
        """Token ids to text."""
        fields = await read_body(request, self._limit)
        vocab = self._served.text(fields.take("model")).llama.vocab
        ids = fields.items("tokens")
        fields.end()
        if ids is None or not all(type(t) is int for t in ids):
            raise InvalidRequest("tokens must be a list of token ids")
        return JSONResponse({"content": vocab.detokenize(ids, special=True)})
