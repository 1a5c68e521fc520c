"""POST /v1/chat/completions, over the package's own chat layer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..async_llama import AsyncLlama
from ..chat.methods import prepare_all
from ..chat.request import ChatRequest
from ..chat.results import ChatChunk
from ..core.vocab import Vocab
from ..engine.results import Usage
from ..errors import InvalidRequest
from ..params import integer
from ..sampling_params import SamplingParams
from .body import Fields, read_body
from .completions import first_seed, last_timings, stream_options, total
from .events import DONE, EventStream, event, merged, while_connected
from .gate import Gate
from .models import Served
from .sampling import each, sampling

# what the chat layer itself gives to templates
_TEMPLATE_S_OWN = {"self", "messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}


class ChatCompletions:
    """The endpoint."""

    def __init__(self, served: Served, gate: Gate, limit: int) -> None:
        self._served, self._gate, self._limit = served, gate, limit

    async def post(self, request: Request) -> Response:
        """Answer a request."""
        fields = await read_body(request, self._limit)
        llm = self._served.text(fields.take("model"))
        messages = fields.items("messages")
        if not messages or not all(isinstance(m, dict) for m in messages):
            raise InvalidRequest("messages must be a list of objects with 'role' and 'content', and not empty")
        stream, with_usage = stream_options(fields)
        options = _options(fields)
        params = sampling(fields, SamplingParams(max_tokens=None), _logprobs(fields))
        if stream:
            return EventStream(self._events(llm, messages, params, options, with_usage))

        async def work() -> Any:
            with self._gate.enter(params.n):
                return await llm.chat(messages, params, **options)

        answer = await while_connected(request.receive, work())
        out = answer.to_dict()
        for choice in out["choices"]:
            _name_tops(choice["logprobs"], llm.llama.vocab)
        return JSONResponse({**out, "model": self._served.names["text"], **last_timings(answer.timings)})

    async def _events(
        self,
        llm: AsyncLlama,
        messages: list[Any],
        params: SamplingParams,
        options: dict[str, Any],
        with_usage: bool,
    ) -> AsyncGenerator[bytes, None]:
        n = params.n
        usages: list[Usage] = []
        with self._gate.enter(n):
            prepared, _ = await asyncio.to_thread(prepare_all, llm.llama, messages, params, options)
            one = prepared[0]
            streams = [_answer(llm, one, p) for p in each(one.params, n, first_seed(params))]
            common = {"model": self._served.names["text"], **({"usage": None} if with_usage else {})}
            begun: set[int] = set()
            async for i, chunk in merged(streams):
                out = {**chunk.to_dict(), **common}
                choice = out["choices"][0]
                choice["index"] = i
                if i not in begun:
                    begun.add(i)
                    choice["delta"] = {"role": "assistant", **choice["delta"]}
                _name_tops(choice["logprobs"], llm.llama.vocab)
                whole = chunk.completion
                if whole is not None:
                    usages.append(whole.usage)
                yield event({**out, **last_timings(None if whole is None else whole.timings)})
            if with_usage:
                head = {"id": one.id, "object": "chat.completion.chunk", "created": one.created, **common}
                yield event({**head, "choices": [], "usage": total(usages, n)})
            yield DONE


async def _answer(llm: AsyncLlama, request: ChatRequest, params: SamplingParams) -> AsyncGenerator[ChatChunk, None]:
    """One of n streamed answers."""
    parser = request.stream()
    chunks: Any = llm.stream(request.tokens, params)
    try:
        async for chunk in chunks:
            for piece in parser.feed(chunk):
                yield piece
    finally:
        await chunks.aclose()


def _options(fields: Fields) -> dict[str, Any]:
    """The chat layer's arguments."""
    kwargs = fields.mapping("chat_template_kwargs")
    for name in kwargs:
        if not name.isidentifier() or name in _TEMPLATE_S_OWN:
            raise InvalidRequest(f"chat_template_kwargs: {name!r:.60} is not for a client to give")
    effort = fields.take("reasoning_effort")
    if effort is not None:
        kwargs["reasoning_effort"] = effort
    choice = fields.take("tool_choice", "auto")
    if not isinstance(choice, (str, dict)):
        raise InvalidRequest(f"tool_choice must be a text or an object, not {choice!r:.60}")
    documents = fields.items("documents")
    if documents is not None and not all(isinstance(d, dict) for d in documents):
        raise InvalidRequest("documents must be a list of objects")
    modalities = fields.items("modalities")
    if modalities is not None and modalities != ["text"]:
        raise InvalidRequest("modalities: only ['text'] is supported")
    return {
        "tools": fields.items("tools"),
        "tool_choice": choice,
        "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
        "response_format": fields.mapping("response_format") or None,
        "chat_template_kwargs": kwargs or None,
        "documents": documents,
        "continue_final_message": fields.flag("continue_final_message", False),
    }


def _logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs", False)
    top = integer("top_logprobs", fields.take("top_logprobs", 0), 0, 20)
    if top and not wanted:
        raise InvalidRequest("top_logprobs needs logprobs: true")
    return top if wanted else None


def _name_tops(logprobs: dict[str, Any] | None, vocab: Vocab) -> None:
    """Write the likeliest tokens as texts too, as OpenAI does."""
    for entry in logprobs["content"] if logprobs else ():
        for top in entry["top_logprobs"]:
            piece = vocab.piece(top["token_id"], special=True)
            top["token"], top["bytes"] = piece.decode("utf-8", "replace"), list(piece)
