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
from .events import DONE, EventStream, event
from .sampling import sampling
from .served_model import ServedModel
from .state import ServerState
from .token_logprobs import name_tops
from .tool_fields import as_function_call, tool_options, with_tool_calls
from .usage import FINISH, stream_options, timings_dict, total

# what the chat layer itself gives to templates
_TEMPLATE_S_OWN = {"self", "messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
_REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")


class ChatCompletions:
    """The endpoint, and those that only render or count what it would answer."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def post(self, request: Request) -> Response:
        """Answer a request."""
        state = self._state
        fields = await state.read(request)
        asked = fields.take("model")
        async with contextlib.AsyncExitStack() as held:
            model = await held.enter_async_context(state.model(asked, "text"))
            stream, with_usage = stream_options(fields)
            turn, old = chat_turn(fields, model, asked)
            held.enter_context(state.gate.enter(turn.params.n))
            if stream:
                prepared = await turn.prepared(model.text())
                events = self._events(request, model, turn, prepared, with_usage, old)
                return EventStream(events, held.pop_all())
            answer = await turn.answer(state, request, model)
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
        self,
        request: Request,
        model: ServedModel,
        turn: ChatTurn,
        prepared: ChatRequest,
        with_usage: bool,
        old: bool,
    ) -> AsyncGenerator[bytes, None]:
        usages: list[Usage] = []
        common = {**_head(model), **({"usage": None} if with_usage else {})}
        vocab, begun = model.text().llama.vocab, set()
        async with contextlib.aclosing(turn.chunks(self._state, request, model, prepared)) as chunks:
            async for i, chunk in chunks:
                out = {**chunk.to_dict(), **common}
                choice = out["choices"][0]
                choice["index"] = i
                choice["finish_reason"] = _finish(choice["finish_reason"], old)
                if old:
                    as_function_call(choice["delta"])
                if i not in begun:
                    begun.add(i)
                    choice["delta"] = {"role": "assistant", **choice["delta"]}
                name_tops(choice["logprobs"], vocab)
                whole = chunk.completion
                if whole is not None:
                    usages.append(whole.usage)
                    out["timings"] = timings_dict(whole.timings, whole.usage)
                yield event(out)
        if with_usage:
            head = {"id": prepared.id, "object": "chat.completion.chunk", "created": prepared.created, **common}
            yield event({**head, "choices": [], "usage": total(usages, turn.params.n)})
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
        fields = await self._state.read(request)
        asked = fields.take("model")
        async with self._state.model(asked, "text") as model:
            stream_options(fields)
            turn, _ = chat_turn(fields, model, asked)
            with self._state.gate.enter():
                return await turn.prepared(model.text())


def chat_turn(fields: Fields, model: ServedModel, asked: object) -> tuple[ChatTurn, bool]:
    """The conversation of a request, and whether its functions came under their older names."""
    messages = fields.objects("messages")
    if not messages:
        raise InvalidRequest("messages must be a list of objects with 'role' and 'content', and not empty")
    tools, old = tool_options(fields)
    form = fields.text("reasoning_format", "auto")
    if form not in _REASONING_FORMATS:
        raise InvalidRequest(f"reasoning_format must be one of {', '.join(_REASONING_FORMATS)}, not {form!r:.60}")
    options = {**tools, **_options(fields, messages)}
    params = sampling(fields, SamplingParams(max_tokens=None, overflow="stop"), model, asked, _logprobs(fields))
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
