"""POST /v1/chat/completions, over the package's own chat layer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..chat.request import ChatRequest
from ..chat.tools.function_call import with_tool_calls
from ..engine.results import Usage
from ..errors import InvalidRequest
from ..sampling_params import SamplingParams
from .body import Fields
from .chat_turn import EFFORTS, ChatTurn
from .events import DONE, ChunkWriter
from .sampling import sampling
from .served_model import ServedModel
from .state import Asked, ServerState
from .token_logprobs import prompt_logprobs
from .tool_fields import as_function_call, tool_options
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
            turn, shown = chat_turn(asked)
            asked.enter(turn.params.n)
            if stream:
                if turn.params.prompt_logprobs is not None:
                    raise InvalidRequest("log probabilities of a prompt cannot be streamed: drop stream")
                prepared = await turn.prepared(asked)
                return asked.stream(self._events(asked, turn, prepared, with_usage, shown))
            answer = await turn.answer(asked)
        out = answer.to_dict()
        if shown.token_ids:
            out["prompt_token_ids"] = answer.prompt_tokens
        if turn.params.prompt_logprobs is not None:
            out["prompt_logprobs"] = prompt_logprobs(turn.completions[0].prompt_logprobs)
        for choice, made in zip(out["choices"], turn.completions, strict=True):
            choice["finish_reason"] = _finish(choice["finish_reason"], shown.functions)
            shown.bring(choice, choice["message"], made.token_ids)
        timings = timings_dict(answer.timings, answer.usage)
        return JSONResponse({**out, **_head(model), "timings": timings})

    async def _events(
        self, asked: Asked, turn: ChatTurn, prepared: ChatRequest, with_usage: bool, shown: _Shown
    ) -> AsyncGenerator[bytes, None]:
        model = asked.model
        usages: list[Usage] = []
        timings: dict[str, Any] = {}
        head = {"id": prepared.id, "object": "chat.completion.chunk", "created": prepared.created, **_head(model)}
        writer = ChunkWriter({**head, "usage": None} if with_usage else head)
        begun = set()
        async with contextlib.aclosing(turn.chunks(asked, prepared)) as chunks:
            async for i, chunk in chunks:
                first = b""
                if i not in begun:  # the role comes in a chunk of its own, with the first text
                    begun.add(i)
                    first = writer.text(i, '"delta":{"role":"assistant","content":', None, _NO_MORE)
                    if shown.token_ids:
                        role: dict[str, Any] = {"index": i, "delta": {"role": "assistant", "content": None}}
                        role |= {"finish_reason": None, "logprobs": None}
                        first = writer.choice(role, prompt_token_ids=prepared.tokens.tolist())
                if chunk.content and chunk.is_text and not shown.token_ids:
                    yield first + writer.text(i, '"delta":{"content":', chunk.content, _NO_MORE)
                    continue
                choice = chunk.to_dict()["choices"][0]
                choice["index"] = i
                choice["finish_reason"] = _finish(choice["finish_reason"], shown.functions)
                shown.bring(choice, choice["delta"], chunk.token_ids)
                whole = chunk.completion
                if whole is None:
                    yield first + writer.choice(choice)
                else:
                    usages.append(whole.usage)
                    timings = timings_dict(whole.timings, whole.usage)
                    yield first + writer.choice(choice, timings=timings)
        if with_usage:
            yield writer.last(total(usages, turn.params.n), timings) + DONE
        else:
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
            return await turn.prepared(asked)


@dataclass(frozen=True)
class _Shown:
    """What an answer shows.

    Attributes:
        functions: calls go under their older name, function_call.
        reasoning: the model's thinking is part of it.
        token_ids: and the ids of its tokens.
    """

    functions: bool
    reasoning: bool
    token_ids: bool

    def bring(self, choice: dict[str, Any], said: dict[str, Any], token_ids: list[int]) -> None:
        """Bring a choice, with its message or delta, to that form, in place."""
        if self.functions:
            as_function_call(said)
        if not self.reasoning:
            said.pop("reasoning_content", None)
        if self.token_ids:
            choice["token_ids"] = token_ids


def chat_turn(asked: Asked) -> tuple[ChatTurn, _Shown]:
    """The conversation of a request, and what of its answer is shown."""
    fields = asked.fields
    messages = fields.objects("messages")
    if not messages:
        raise InvalidRequest("messages must be a list of objects with 'role' and 'content', and not empty")
    tools, old = tool_options(fields)
    form = fields.text("reasoning_format", "auto")
    if form not in _REASONING_FORMATS:
        raise InvalidRequest(f"reasoning_format must be one of {', '.join(_REASONING_FORMATS)}, not {form!r:.60}")
    options = {**tools, **_options(fields)}
    shown = _Shown(old, fields.flag("include_reasoning", True), fields.flag("return_token_ids", False))
    top, of_prompt = _logprobs(fields), fields.integer("prompt_logprobs", 0, 20)
    params = sampling(asked, SamplingParams(max_tokens=None, overflow="stop", prompt_logprobs=of_prompt), top)
    return ChatTurn(with_tool_calls(messages), params, options, reasoning=form != "none"), shown


def _head(model: ServedModel) -> dict[str, Any]:
    return {"model": model.name, "system_fingerprint": model.fingerprint}


def _finish(reason: str | None, old: bool) -> str | None:
    if reason is None:
        return None
    found = FINISH[reason]
    return "function_call" if old and found == "tool_calls" else found


def _options(fields: Fields) -> dict[str, Any]:
    """The chat layer's arguments, without tools."""
    kwargs = fields.mapping("chat_template_kwargs")
    for name in kwargs:
        if not name.isidentifier() or name in _TEMPLATE_S_OWN:
            raise InvalidRequest(f"chat_template_kwargs: {name!r:.60} is not for a client to give")
    for name, values in (("reasoning_effort", EFFORTS), ("verbosity", ("low", "medium", "high"))):
        value = fields.take(name)  # templates that know it read it
        if value is not None:
            if value not in values:
                raise InvalidRequest(f"{name} must be one of {', '.join(values)}, not {value!r:.60}")
            kwargs[name] = value
    thinking = Fields(fields.mapping("thinking"), True).take("type")  # as some providers have it
    if thinking is not None:
        kwargs["enable_thinking"] = thinking != "disabled"
    if "enable_thinking" in fields:
        kwargs["enable_thinking"] = fields.flag("enable_thinking", True)
    modalities = fields.items("modalities")
    if modalities is not None and modalities != ["text"]:
        raise InvalidRequest("modalities: only ['text'] is supported")
    return {
        "response_format": fields.mapping("response_format") or None,
        "chat_template_kwargs": kwargs or None,
        "documents": fields.objects("documents"),
        "continue_final_message": fields.take("continue_final_message"),
        "add_generation_prompt": fields.take("add_generation_prompt"),
    }


def _logprobs(fields: Fields) -> int | None:
    probs = fields.integer("n_probs", 0, 20, 0)  # llama.cpp's name
    wanted = fields.flag("logprobs", bool(probs))
    top = fields.integer("top_logprobs", 0, 20, probs)
    if top and not wanted:
        raise InvalidRequest("top_logprobs needs logprobs: true")
    return top if wanted else None
