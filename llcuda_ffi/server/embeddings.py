"""POST /v1/embeddings, and llama.cpp's /embedding."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..embedder import Embedder
from ..errors import InvalidRequest
from ..params import integer
from .body import Fields, whole
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
            dim = whole(fields.take("dimensions"))
            if dim is not None:
                integer("dimensions", dim, 1, embedder.dim)
            truncate, most = _truncation(fields)
            before = _prompt(fields, embedder)
            norm = fields.integer("embd_normalize", -1, 100, 2)
            if not fields.flag("normalize", fields.flag("use_activation", True)):
                norm = -1
            for name, (allowed, why) in _ONLY.items():
                if fields.take(name, allowed) != allowed:
                    raise InvalidRequest(f"{name} is not supported: {why}")
            fields.take("user")
            fields.check(fields.rest(), instead=_INSTEAD)

            asked.enter()

            async def work() -> tuple[np.ndarray, int]:
                loop = asyncio.get_running_loop()
                job = _Job(embedder, texts, before, dim, truncate, most, norm or 0)
                return await loop.run_in_executor(self._threads, job.run)

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


# fields that may only say what happens anyway, and why nothing else
_ONLY: dict[str, tuple[Any, str]] = {
    "embedding_type": ("float", "encoding_format chooses float or base64"),
    "embed_dtype": ("float32", "vectors are float32"),
    "add_special_tokens": (True, "send token ids where none are to be added"),
    "late_chunking": (False, "each text has a vector of its own"),
    "priority": (0, "the one who runs the server sets priorities"),
}
_INSTEAD = {
    "messages": "input: texts have vectors, conversations have none",
    "prompt": "it in the texts, or the name of one of the model's prompts as prompt_name",
    "task": "prompt_name, a name of the model's prompts",
}
# what others call the sides of a search → the names that models give their prompts
_SIDES = {
    "query": ("query",),
    "search_query": ("query",),
    "document": ("document", "passage", "corpus"),
    "passage": ("passage", "document", "corpus"),
    "search_document": ("document", "passage", "corpus"),
}


def _truncation(fields: Fields) -> tuple[bool, int | None]:
    """Whether texts that are too long are cut (Text Embeddings Inference's `truncate`), and vLLM's number for it."""
    cut = fields.flag("truncate", False)
    most = fields.integer("truncate_prompt_tokens", -1, 1 << 30)
    return cut or most is not None, None if most == -1 else most


def _prompt(fields: Fields, embedder: Embedder) -> str:
    """The text before each text: that of `prompt_name`, or of `input_type` where the model has prompts."""
    name, side = (fields.text(key) if key in fields else None for key in ("prompt_name", "input_type"))
    if name is not None:
        if name not in embedder.prompts:
            raise InvalidRequest(
                f"no prompt is called {name!r:.60}: the model has {', '.join(embedder.prompts) or 'none'}"
            )
        return embedder.prompts[name]
    if side is None:
        return ""
    if side not in _SIDES:
        raise InvalidRequest(f"input_type must be one of {', '.join(_SIDES)}, not {side!r:.60}")
    return next((embedder.prompts[name] for name in _SIDES[side] if name in embedder.prompts), "")


@dataclass
class _Job:
    """Texts to be embedded.

    Attributes:
        before: the text before each of them.
        most: tokens that each is cut to, special ones included; None: what the model takes.
        norm: llama.cpp's: -1 as computed, 0 the largest number is 32760, 2 length 1, p the p-norm.
    """

    embedder: Embedder
    texts: list[Prompt]
    before: str
    dim: int | None
    truncate: bool
    most: int | None
    norm: int

    def run(self) -> tuple[np.ndarray, int]:
        """Vectors, and the number of tokens."""
        tokens = [self._ids(text) for text in self.texts]
        if self.most is not None:
            tokens = [_cut(ids, max(2, self.most)) for ids in tokens]
        vectors, count = self.embedder.encode_tokenized(
            tokens, dim=self.dim, truncate=self.truncate, normalize=self.norm == 2
        )
        if self.norm == 0:
            vectors = vectors * (32760 / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12))
        elif self.norm not in (-1, 2):
            vectors = vectors / np.maximum(np.linalg.norm(vectors, self.norm, axis=1, keepdims=True), 1e-12)
        return vectors, count

    def _ids(self, text: Prompt) -> Sequence[int] | np.ndarray:
        if isinstance(text, str):
            return self.embedder.tokenize(self.before + text)
        return [t for part in text for t in ([part] if isinstance(part, int) else self.embedder.tokenize(part))]


def _cut(ids: Sequence[int] | np.ndarray, most: int) -> Sequence[int] | np.ndarray:
    """At most so many tokens, the last one (an end mark in most models) kept."""
    return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]
