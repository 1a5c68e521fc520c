"""POST /v1/chat/completions, over the package's own chat layer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..chat.request import ChatRequest
from ..engine.results import Usage
from ..errors import InvalidRequest
from ..params import integer
from ..sampling_params import SamplingParams
from .body import Fields
from .chat_turn import ChatTurn
from .events import DONE, ChunkWriter
from .sampling import sampling
from .served_model import ServedModel
from .state import Asked, ServerState
from .token_logprobs import name_tops
from .tool_fields import as_function_call, tool_options, with_tool_calls
from .usage import FINISH, stream_options, timings_dict, total

# what the chat layer itself gives to templates
_TEMPLATE_S_OWN = {"self", "messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
_NO_MORE = '},"finish_reason":null,"logprobs":null}'
_REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")


class ChatCompletions:
    """The endpoint, and those that only render or count what it would answer."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def post(self, request: Request) -> Response:
        """Answer a request."""
        async with self._state.asked(request, "text") as asked:
            model = asked.model
            stream, with_usage = stream_options(asked.fields)
            turn, old = chat_turn(asked)
            asked.enter(turn.params.n)
            if stream:
                prepared = await turn.prepared(model)
                return asked.stream(self._events(asked, turn, prepared, with_usage, old))
            answer = await turn.answer(asked)
            vocab = model.text().llama.vocab
        out = answer.to_dict()
        for choice in out["choices"]:
            choice["finish_reason"] = _finish(choice["finish_reason"], old)
            name_tops(choice["logprobs"], vocab)
            if old:
                as_function_call(choice["message"])
        timings = timings_dict(answer.timings, answer.usage)
        return JSONResponse({**out, **_head(model), "timings": timings})

    async def _events(
        self, asked: Asked, turn: ChatTurn, prepared: ChatRequest, with_usage: bool, old: bool
    ) -> AsyncGenerator[bytes, None]:
        model = asked.model
        usages: list[Usage] = []
        timings: dict[str, Any] = {}
        head = {"id": prepared.id, "object": "chat.completion.chunk", "created": prepared.created, **_head(model)}
        writer = ChunkWriter({**head, "usage": None} if with_usage else head)
        vocab, begun = model.text().llama.vocab, set()
        async with contextlib.aclosing(turn.chunks(asked, prepared)) as chunks:
            async for i, chunk in chunks:
                first = b""
                if i not in begun:  # the role comes in a chunk of its own, with the first text
                    begun.add(i)
                    first = writer.text(i, '"delta":{"role":"assistant","content":', None, _NO_MORE)
                if chunk.content and chunk.is_text:
                    yield first + writer.text(i, '"delta":{"content":', chunk.content, _NO_MORE)
                    continue
                choice = chunk.to_dict()["choices"][0]
                choice["index"] = i
                choice["finish_reason"] = _finish(choice["finish_reason"], old)
                if old:
                    as_function_call(choice["delta"])
                name_tops(choice["logprobs"], vocab)
                whole = chunk.completion
                if whole is None:
                    yield first + writer.choice(choice)
                else:
                    usages.append(whole.usage)
                    timings = timings_dict(whole.timings, whole.usage)
                    yield first + writer.choice(choice, timings=timings)
        if with_usage:
            yield writer.last(total(usages, turn.params.n), timings)
        yield DONE

    async def apply_template(self, request: Request) -> Response:
        """POST /apply-template: the prompt of a conversation."""
        prepared = await self._rendered(request)
        return JSONResponse({"prompt": prepared.text})

    async def input_tokens(self, request: Request) -> Response:
        """POST /v1/chat/completions/input_tokens: how many tokens the prompt of a conversation has."""
        prepared = await self._rendered(request)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(prepared.tokens)})

    async def _rendered(self, request: Request) -> ChatRequest:
        async with self._state.asked(request, "text") as asked:
            stream_options(asked.fields)
            turn, _ = chat_turn(asked)
            asked.enter()
            return await turn.prepared(asked.model)


def chat_turn(asked: Asked) -> tuple[ChatTurn, bool]:
    """The conversation of a request, and whether its functions came under their older names."""
    fields = asked.fields
    messages = fields.objects("messages")
    if not messages:
        raise InvalidRequest("messages must be a list of objects with 'role' and 'content', and not empty")
    tools, old = tool_options(fields)
    form = fields.text("reasoning_format", "auto")
    if form not in _REASONING_FORMATS:
        raise InvalidRequest(f"reasoning_format must be one of {', '.join(_REASONING_FORMATS)}, not {form!r:.60}")
    options = {**tools, **_options(fields, messages)}
    params = sampling(asked, SamplingParams(max_tokens=None, overflow="stop"), _logprobs(fields))
    return ChatTurn(with_tool_calls(messages), params, options, reasoning=form != "none"), old


def _head(model: ServedModel) -> dict[str, Any]:
    return {"model": model.name, "system_fingerprint": model.fingerprint}


def _finish(reason: str | None, old: bool) -> str | None:
    if reason is None:
        return None
    found = FINISH[reason]
    return "function_call" if old and found == "tool_calls" else found


def _options(fields: Fields, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The chat layer's arguments, without tools."""
    kwargs = fields.mapping("chat_template_kwargs")
    for name in kwargs:
        if not name.isidentifier() or name in _TEMPLATE_S_OWN:
            raise InvalidRequest(f"chat_template_kwargs: {name!r:.60} is not for a client to give")
    for name, values in (("reasoning_effort", _EFFORTS), ("verbosity", ("low", "medium", "high"))):
        value = fields.take(name)  # templates that know it read it
        if value is not None:
            if value not in values:
                raise InvalidRequest(f"{name} must be one of {', '.join(values)}, not {value!r:.60}")
            kwargs[name] = value
    modalities = fields.items("modalities")
    if modalities is not None and modalities != ["text"]:
        raise InvalidRequest("modalities: only ['text'] is supported")
    # as llama-server does: an assistant's message at the end is the beginning of the answer
    begun = messages[-1].get("role") == "assistant" and not messages[-1].get("tool_calls")
    opened = fields.take("add_generation_prompt")
    goes_on = fields.flag("continue_final_message", begun and opened is not True)
    if goes_on and opened is True:
        raise InvalidRequest(
            "add_generation_prompt begins an answer, continue_final_message goes on with one: drop one"
        )
    return {
        "response_format": fields.mapping("response_format") or None,
        "chat_template_kwargs": kwargs or None,
        "documents": fields.objects("documents"),
        "continue_final_message": goes_on,
    }


_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


def _logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs", False)
    top = integer("top_logprobs", fields.take("top_logprobs", 0), 0, 20)
    if top and not wanted:
        raise InvalidRequest("top_logprobs needs logprobs: true")
    return top if wanted else None
