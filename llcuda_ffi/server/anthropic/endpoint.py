"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...chat.identity import new_id
from ...chat.request import ChatRequest
from ...chat.results import ChatCompletion
from ...engine.results import Usage
from ...errors import InvalidRequest
from ...sampling_params import SamplingParams
from ..body import Fields
from ..chat_turn import ChatTurn
from ..errors import NO_THREADS, Refused, anthropic_error
from ..events import to_json
from ..sampling import sampling
from ..served_model import ServedModel
from ..state import Asked, ServerState
from .blocks import BlockWriter, Event, blocks_of
from .messages import messages_of, tools_of


class Messages:
    """The endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def post(self, request: Request) -> Response:
        """Answer a request."""
        async with self._state.asked(request, "text") as asked:
            fields, model = asked.fields, asked.model
            stream = fields.flag("stream", False)
            limit = fields.integer("max_tokens", 1, 1 << 31)
            if limit is None:
                raise InvalidRequest("max_tokens is missing")
            turn = _turn(asked, limit)
            asked.enter()
            name = f"msg_{new_id(12)}"
            if stream:
                prepared = await turn.prepared(asked)
                return asked.stream(self._events(asked, turn, prepared, name), _error_event)
            answer = await turn.answer(asked)
        return JSONResponse(_message(name, model, blocks_of(answer), *_end(answer, turn), _usage(answer.usage)))

    async def _events(
        self, asked: Asked, turn: ChatTurn, prepared: ChatRequest, name: str
    ) -> AsyncGenerator[bytes, None]:
        blocks = BlockWriter()
        answer: ChatCompletion | None = None
        begun = _message(name, asked.model, [], None, None, _usage(Usage(len(prepared.tokens), 0, 0)))
        async with contextlib.aclosing(turn.chunks(asked, prepared)) as chunks:
            async for _, chunk in chunks:
                events = blocks.feed(chunk)
                if begun:
                    events = [{"type": "message_start", "message": begun}, {"type": "ping"}, *events]
                    begun = {}
                if events:
                    yield b"".join(map(_event, events))
                answer = chunk.completion or answer
        if answer is None:
            raise InvalidRequest("the answer has no end")
        reason, sequence = _end(answer, turn)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        last: list[Event] = [
            {"type": "message_delta", "delta": delta, "usage": _usage(answer.usage)},
            {"type": "message_stop"},
        ]
        yield b"".join(map(_event, [*blocks.close(), *last]))

    async def count_tokens(self, request: Request) -> Response:
        """How many tokens the prompt of a conversation has."""
        async with self._state.asked(request, "text") as asked:
            asked.fields.take("max_tokens")
            asked.fields.take("stream")
            turn = _turn(asked, 1)
            asked.enter()
            prepared = await turn.prepared(asked)
        return JSONResponse({"input_tokens": len(prepared.tokens)})


# hints and beta features that change no answer here
_HINTS = (
    "metadata", "service_tier", "betas", "inference_geo", "cache_control", "context_management", "speed", "diagnostics",
    "user_profile_id", "workspace_id", "billing_policy",
)  # fmt: skip


def _turn(asked: Asked, limit: int) -> ChatTurn:
    """The conversation of a request."""
    fields = asked.fields
    messages, options = messages_of(fields), tools_of(fields)
    thinking = Fields(fields.mapping("thinking"), fields.lenient)
    kind = thinking.text("type", "")
    budget = thinking.integer("budget_tokens", 0, 1 << 30)
    thinking.take("display")
    thinking.end()
    if kind not in ("", "enabled", "disabled", "adaptive"):
        raise InvalidRequest(f"thinking: a type is enabled, adaptive or disabled, not {kind!r:.60}")
    output = Fields(fields.mapping("output_config"), fields.lenient)
    form = output.mapping("format") or fields.mapping("output_format")
    effort = output.take("effort")
    output.take("task_budget")
    output.end()
    variables = {} if not kind else {"enable_thinking": kind != "disabled"}
    if effort is not None:
        variables["reasoning_effort"] = effort
    if variables:
        options["chat_template_kwargs"] = variables
    if form:
        options["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
    for name in _HINTS:
        fields.take(name)
    for name in ("mcp_servers", "container"):
        if fields.take(name):
            raise InvalidRequest(f"{name} is not supported: this server runs no tools")
    for name in ("fallbacks", "compaction"):
        if fields.take(name):
            raise InvalidRequest(f"{name} is not supported: the model that is named answers, with what it is sent")
    if fields.take("thread") is not None:
        raise Refused(400, "thread is not supported: send the whole conversation", NO_THREADS)
    stops = fields.items("stop_sequences")
    most = budget if kind == "enabled" else None
    settings = {"max_tokens": limit, "stop": stops, "max_reasoning_tokens": most, "n": 1}
    params = sampling(asked, SamplingParams(overflow="stop"), None, **settings)
    return ChatTurn(messages, params, options)


def _message(
    name: str,
    model: ServedModel,
    content: list[dict[str, Any]],
    reason: str | None,
    sequence: str | None,
    usage: dict[str, int],
) -> dict[str, Any]:
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "model": model.name,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage,
    }


def _end(answer: ChatCompletion, turn: ChatTurn) -> tuple[str, str | None]:
    """stop_reason and stop_sequence."""
    if answer.finish_reason == "tool_calls":
        return "tool_use", None
    if answer.finish_reason != "stop":
        return "max_tokens", None
    if isinstance(turn.stopped_by, str):
        return "stop_sequence", turn.stopped_by
    return "end_turn", None


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _error_event(error: BaseException) -> bytes:
    return _event(anthropic_error(error, None)[1])


def _event(value: Event) -> bytes:
    return f"event: {value['type']}\ndata: {to_json(value)}\n\n".encode()
