"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...core.vocab import Vocab
from ...errors import InvalidRequest
from ..chat import chat_turn
from ..events import to_json
from ..served_model import ServedModel
from ..state import ServerState

_SLICE = 1000


class Tokens:
    """The endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def tokenize(self, request: Request) -> Response:
        """Text to token ids; vLLM's names are taken too."""
        async with self._state.asked(request, None) as asked:
            fields, vocab = asked.fields, _vocab(asked.model)
            strings = fields.flag("return_token_strs", False)
            if "messages" in fields:  # vLLM's: a conversation's prompt
                asked.model.as_kind("text")
                turn, _ = chat_turn(asked)
                asked.enter()
                prompt: list[int] = (await turn.prepared(asked)).tokens.tolist()
                return await asyncio.to_thread(_counted, prompt, vocab, strings)
            text = fields.text("content" if "content" in fields or "prompt" not in fields else "prompt")
            special = fields.flag("add_special_tokens", fields.flag("add_special", False))
            parse = fields.flag("parse_special", True)
            pieces = fields.flag("with_pieces", False)
            fields.end()

            def work() -> Response:
                ids: list[int] = vocab.tokenize(text, add_special=special, parse_special=parse).tolist()
                if pieces:
                    return _counted(
                        [{"id": t, "piece": _piece(vocab.piece(t, special=True))} for t in ids], vocab, False
                    )
                return _counted(ids, vocab, strings)

            asked.enter()
            return await asyncio.to_thread(work)

    async def detokenize(self, request: Request) -> Response:
        """Token ids to text, under llama.cpp's name and vLLM's."""
        async with self._state.asked(request, None) as asked:
            fields, vocab = asked.fields, _vocab(asked.model)
            ids = fields.items("tokens")
            fields.end()
            if ids is None or not all(type(t) is int for t in ids):
                raise InvalidRequest("tokens must be a list of token ids")
            asked.enter()
            text = await asyncio.to_thread(vocab.detokenize, ids, special=True)
        return JSONResponse({"content": text, "prompt": text})

    async def info(self, request: Request) -> Response:
        """GET /tokenizer_info, as vLLM has it: lm-eval and others tokenize by the server when it is there."""
        async with self._state.model(request.query_params.get("model"), "text") as model:
            llama = model.text().llama
            vocab = llama.vocab
            special = {name: vocab.special(name) for name in ("bos", "eos", "pad")}
            return JSONResponse(
                {
                    "tokenizer_class": "llama.cpp",
                    "chat_template": model.template or llama.model.chat_template(),
                    "model_max_length": llama.n_ctx,
                    **{f"{name}_token": None if t is None else vocab.text(t) for name, t in special.items()},
                }
            )


def _counted(tokens: list[Any], vocab: Vocab, strings: bool) -> Response:
    """The answer, written in the thread that calls."""
    body = b'{"tokens":[%b],"count":%d' % (_listed(tokens), len(tokens))
    if strings:
        body += b',"token_strs":[%b]' % _listed(
            [vocab.piece(t, special=True).decode("utf-8", "replace") for t in tokens]
        )
    return Response(body + b"}", media_type="application/json")


def _listed(items: list[Any]) -> bytes:
    """JSON of a list's items, some at a time: one call for a million holds the interpreter's lock, and all streams."""
    slices = (items[i : i + _SLICE] for i in range(0, len(items), _SLICE))
    return b",".join(to_json(part)[1:-1].encode() for part in slices)


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
