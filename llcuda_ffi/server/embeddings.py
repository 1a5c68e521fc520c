"""POST /v1/embeddings, and llama.cpp's /embedding."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..embedder import Embedder
from ..errors import InvalidRequest
from ..params import integer
from .body import Fields
from .events import while_connected
from .prompts import Prompt, prompts_of
from .state import ServerState


class Embeddings:
    """The endpoints. Texts of requests at once share batches; one that began is computed to its end."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        # threads of its own: long jobs must not keep those that prepare chats
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="llcuda_ffi-embeddings")

    async def post(self, request: Request) -> Response:
        """Answer OpenAI's request."""
        name, data, tokens = await self._vectors(request)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})

    async def native(self, request: Request) -> Response:
        """Answer llama.cpp's: a list of {"index", "embedding"}, the latter a list with one vector."""
        _, data, _ = await self._vectors(request)
        return JSONResponse([{"index": d["index"], "embedding": [d["embedding"]]} for d in data])

    async def _vectors(self, request: Request) -> tuple[str, list[dict[str, Any]], int]:
        """The model's name, the vectors, and the number of tokens."""
        async with self._state.asked(request, "embedding") as asked:
            fields, model = asked.fields, asked.model
            embedder = model.embedder()
            given = fields.take("input", fields.take("content"))
            if given is None:
                raise InvalidRequest("input is missing: a text, token ids, or a list of those")
            texts = prompts_of(given, "input")
            form = fields.text("encoding_format", "float")
            if form not in ("float", "base64"):
                raise InvalidRequest(f"encoding_format must be 'float' or 'base64', not {form!r:.60}")
            dim = fields.take("dimensions")
            if dim is not None:
                integer("dimensions", dim, 1, embedder.dim)
            truncate = _truncation(fields)
            norm = fields.integer("embd_normalize", -1, 2, 2)
            if norm not in (-1, 2):
                raise InvalidRequest("embd_normalize may be 2 (length 1) or -1 (as computed)")
            fields.take("user")
            fields.end()

            asked.enter()

            async def work() -> tuple[np.ndarray, int]:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, _encode, embedder, texts, dim, truncate, norm == 2)

            vectors, tokens = await while_connected(request.receive, work())
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(v.astype("<f4").tobytes()).decode() if form == "base64" else v.tolist(),
            }
            for i, v in enumerate(vectors)
        ]
        return model.name, data, tokens


def _truncation(fields: Fields) -> bool:
    """Whether texts that are too long are cut: Text Embeddings Inference's `truncate`, vLLM's name for it."""
    cut = fields.flag("truncate", False)
    most = fields.integer("truncate_prompt_tokens", -1, 1 << 30)
    if most not in (None, -1):
        raise InvalidRequest("truncate_prompt_tokens may be -1: to what the model takes")
    return cut or most == -1


def _encode(
    embedder: Embedder, texts: list[Prompt], dim: int | None, truncate: bool, normalize: bool
) -> tuple[np.ndarray, int]:
    """Vectors, and the number of tokens."""
    tokens = [_ids(embedder, text) for text in texts]
    return embedder.encode_tokenized(tokens, dim=dim, truncate=truncate, normalize=normalize)


def _ids(embedder: Embedder, text: Prompt) -> Sequence[int] | np.ndarray:
    if isinstance(text, str):
        return embedder.tokenize(text)
    return [t for part in text for t in ([part] if isinstance(part, int) else embedder.tokenize(part))]
