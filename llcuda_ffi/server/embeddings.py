"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..embedder import Embedder
from ..errors import InvalidRequest
from ..params import integer
from .body import read_body
from .events import while_connected
from .gate import Gate
from .models import Served

MOST_TEXTS = 2048


class Embeddings:
    """The endpoint. Texts of requests at once share batches; one that began is computed to its end."""

    def __init__(self, served: Served, gate: Gate, limit: int) -> None:
        self._served, self._gate, self._limit = served, gate, limit
        # threads of its own: long jobs must not keep those that prepare chats
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="llcuda_ffi-embeddings")

    async def post(self, request: Request) -> Response:
        """Answer a request."""
        fields = await read_body(request, self._limit)
        embedder = self._served.embedding(fields.take("model"))
        texts = fields.take("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
            raise InvalidRequest("input must be a text or a list of texts, none empty; token ids are not taken")
        if len(texts) > MOST_TEXTS:
            raise InvalidRequest(f"input has {len(texts)} texts, more than {MOST_TEXTS}")
        form = fields.text("encoding_format", "float")
        if form not in ("float", "base64"):
            raise InvalidRequest(f"encoding_format must be 'float' or 'base64', not {form!r:.60}")
        dim = fields.take("dimensions")
        if dim is not None:
            integer("dimensions", dim, 1, embedder.dim)
        fields.take("user")
        fields.end()

        async def work() -> tuple[np.ndarray, int]:
            with self._gate.enter():
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, _encode, embedder, texts, dim)

        vectors, tokens = await while_connected(request.receive, work())
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(v.astype("<f4").tobytes()).decode() if form == "base64" else v.tolist(),
            }
            for i, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        model = self._served.names["embedding"]
        return JSONResponse({"object": "list", "data": data, "model": model, "usage": usage})


def _encode(embedder: Embedder, texts: list[str], dim: int | None) -> tuple[np.ndarray, int]:
    vectors = embedder.encode(texts, dim=dim, show_progress=False)
    return vectors, sum(len(embedder.tokenize(text)) for text in texts)
