"""POST /v1/responses and what is asked about responses that are kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...chat.identity import created_now, new_id
from ...chat.request import ChatRequest
from ...chat.results import ChatCompletion, logprobs_dict
from ...errors import InvalidRequest
from ...sampling_params import SamplingParams
from ..body import Fields
from ..chat_turn import EFFORTS, ChatTurn
from ..errors import error_dict
from ..events import to_json
from ..sampling import sampling
from ..served_model import ServedModel
from ..state import Asked, ServerState
from ..usage import timings_dict
from .items import Item, input_items, messages_of, response_format, tools_of
from .output import Event, OutputWriter
from .store import ResponseKeeper

_LOGPROBS = "message.output_text.logprobs"
# OpenAI's; but for the first nothing of it is there to be included
_INCLUDES = (
    _LOGPROBS, "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results",
    "web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)  # fmt: skip
# fields that may say one thing only, and why
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "background": ((False,), "the answer comes with the request"),
    "truncation": (("disabled", "auto"), "an input that is too long is refused"),
    "conversation": ((), "send input, or previous_response_id"),
    "prompt": ((), "prompts are not stored: send input and instructions"),
    "context_management": (([],), "send input, or previous_response_id"),
}


class Responses:
    """The endpoints."""

    def __init__(self, state: ServerState, store: ResponseKeeper) -> None:
        self._state, self._store = state, store

    async def post(self, request: Request) -> Response:
        """Answer a request."""
        async with self._state.asked(request, "text") as asked:
            model = asked.model
            stream = asked.fields.flag("stream", False)
            job = _Job(asked, await self._input(asked), await self._earlier(asked))
            asked.enter()
            if stream:
                prepared = await job.turn.prepared(asked)
                return asked.stream(self._events(asked, job, prepared), _error_event)
            answer = await job.turn.answer(asked)
            output = OutputWriter(job.namespaces)
            output.whole(answer, job.logprobs(answer.choices[0].logprobs, model))
            done = job.finished(answer, output.items, model)
        await self._keep(request, job, done)
        return JSONResponse({**done, "timings": timings_dict(answer.timings, answer.usage)})

    async def _events(self, asked: Asked, job: _Job, prepared: ChatRequest) -> AsyncGenerator[bytes, None]:
        model, output, number = asked.model, OutputWriter(job.namespaces), 0

        def written(events: list[Event]) -> bytes:
            nonlocal number
            lines = []
            for event in events:
                lines.append(_event({**event, "sequence_number": number}))
                number += 1
            return b"".join(lines)

        begun = job.response("in_progress", [])
        first: list[Event] = [{"type": f"response.{what}", "response": begun} for what in ("created", "in_progress")]
        answer: ChatCompletion | None = None
        async with contextlib.aclosing(job.turn.chunks(asked, prepared)) as chunks:
            async for _, chunk in chunks:
                events = [*first, *output.feed(chunk, job.logprobs(chunk.logprobs, model))]
                first = []  # with the first piece: what is refused before it gets its status
                if events:
                    yield written(events)
                answer = chunk.completion or answer
        if answer is None:
            raise InvalidRequest("the answer has no end")
        done = job.finished(answer, output.items, model)
        last = output.close(cut=done["status"] == "incomplete")
        await self._keep(asked.request, job, done)
        timings = timings_dict(answer.timings, answer.usage)
        end: Event = {"type": f"response.{done['status']}", "response": done, "timings": timings}
        yield written([*last, end])

    async def input_tokens(self, request: Request) -> Response:
        """POST /v1/responses/input_tokens: how many tokens the prompt would have."""
        async with self._state.asked(request, "text") as asked:
            asked.fields.take("stream")
            job = _Job(asked, await self._input(asked), await self._earlier(asked))
            asked.enter()
            prepared = await job.turn.prepared(asked)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(prepared.tokens)})

    async def one(self, request: Request) -> Response:
        """GET or DELETE /v1/responses/ID."""
        name = request.path_params["name"]
        if request.method == "DELETE":
            await self._store.delete(_key(request), name)
            return JSONResponse({"id": name, "object": "response", "deleted": True})
        if request.query_params.get("stream") == "true":
            raise InvalidRequest("a response that is kept is given whole: leave stream out")
        return JSONResponse((await self._store.get(_key(request), name)).response)

    async def input_items(self, request: Request) -> Response:
        """GET /v1/responses/ID/input_items."""
        items = (await self._store.get(_key(request), request.path_params["name"])).items
        given = [{"id": f"item_{i}", **item} for i, item in enumerate(items)]
        if request.query_params.get("order", "desc") == "desc":
            given.reverse()
        return JSONResponse({"object": "list", "data": given, "has_more": False})

    async def _input(self, asked: Asked) -> Any:
        """A request's `input`, with the items of earlier answers that it refers to in their places."""
        given = asked.fields.take("input")
        if not isinstance(given, list):
            return given
        places = [i for i, item in enumerate(given) if isinstance(item, dict) and item.get("type") == "item_reference"]
        found = await self._store.items(_key(asked.request), [given[i].get("id") for i in places]) if places else []
        for i, item in zip(places, found, strict=True):
            if item is None:
                raise InvalidRequest(f"input[{i}]: no item is kept as {given[i].get('id')!r:.60}: send the item itself")
            given[i] = item
        return given

    async def _earlier(self, asked: Asked) -> tuple[str | None, list[Item]]:
        """The id of the response that a request goes on from, and the conversation with it."""
        name = asked.fields.take("previous_response_id")
        if name is None:
            return None, []
        stored = await self._store.get(_key(asked.request), name)
        return name, [*stored.items, *stored.response["output"]]

    async def _keep(self, request: Request, job: _Job, done: dict[str, Any]) -> None:
        if job.store:
            await self._store.put(_key(request), done, job.items)


class _Job:
    """A request, read.

    Attributes:
        turn: the conversation to be answered.
        items: the conversation as items, the request's own input last.
        store: whether the response is to be kept.
        namespaces: the groups of functions that have one, by their names.
    """

    def __init__(self, asked: Asked, given: Any, earlier: tuple[str | None, list[Item]]) -> None:
        fields = asked.fields
        instructions = fields.text("instructions", "") or None
        if given is None and instructions is None and not earlier[1]:
            raise InvalidRequest("input is missing: a text, or a list of items")
        self.items = [*earlier[1], *input_items("" if given is None else given)]
        tools, shown_tools, self.namespaces = tools_of(fields)
        form, text = response_format(fields)
        reasoning = Fields(fields.mapping("reasoning"), fields.lenient)
        effort = reasoning.take("effort")
        for name in ("summary", "generate_summary", "context", "mode"):
            reasoning.take(name)
        if effort is not None and effort not in EFFORTS:
            raise InvalidRequest(f"reasoning.effort must be one of {', '.join(EFFORTS)}, not {effort!r:.60}")
        reasoning.end()
        include = fields.items("include") or []
        for name in include:
            if name not in _INCLUDES:
                raise InvalidRequest(f"include: {name!r:.60} is not one of {', '.join(_INCLUDES)}")
        top = fields.integer("top_logprobs", 0, 20, 0)
        self._top = top if top or _LOGPROBS in include else None
        self.store = fields.flag("store", True)
        limit = fields.take("max_output_tokens")
        metadata = fields.mapping("metadata")
        for name, (allowed, why) in _ONLY.items():
            value = fields.take(name)
            if value is not None and value not in allowed:
                raise InvalidRequest(f"{name}={value!r:.60} is not supported: {why}")
        for name in ("stream_options", "client_metadata"):
            fields.take(name)
        fields.integer("max_tool_calls", 1, 1 << 30)  # of tools that a provider runs: there are none
        params = sampling(asked, SamplingParams(max_tokens=None, overflow="stop"), self._top, max_tokens=limit, n=1)
        options = {**tools, "response_format": form}
        if effort is not None:
            options["chat_template_kwargs"] = {"reasoning_effort": effort}
        self.turn = ChatTurn(messages_of(self.items, instructions), params, options)
        self._shown = {
            "id": f"resp_{new_id(24)}",
            "object": "response",
            "created_at": created_now(),
            "model": asked.model.name,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": instructions,
            "max_output_tokens": limit,
            "previous_response_id": earlier[0],
            "reasoning": {"effort": effort, "summary": None},
            "service_tier": "default",
            "store": self.store,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_logprobs": top,
            "text": text,
            "truncation": "disabled",
            "metadata": metadata,
            "usage": None,
            **shown_tools,
        }

    def response(self, status: str, output: list[Item], **more: Any) -> dict[str, Any]:
        """The response as it stands."""
        return {**self._shown, "status": status, "output": output, **more}

    def finished(self, answer: ChatCompletion, output: list[Item], model: ServedModel) -> dict[str, Any]:
        """The response at its end."""
        cut = answer.finish_reason not in ("stop", "tool_calls")
        usage, thinking = answer.usage, answer.message.reasoning_content
        vocab = model.text().llama.vocab
        used = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {
                "reasoning_tokens": len(vocab.tokenize(thinking, add_special=False)) if thinking else 0
            },
            "total_tokens": usage.total_tokens,
        }
        if cut:
            why = {"reason": "max_output_tokens"}
            return self.response("incomplete", output, usage=used, incomplete_details=why)
        return self.response("completed", output, usage=used, completed_at=int(time.time()))

    def logprobs(self, entries: Any, model: ServedModel) -> list[Any]:
        """Log probabilities of a text's tokens, where they were asked for."""
        if self._top is None or not entries:
            return []
        found = logprobs_dict(entries)
        return list(found["content"]) if found else []


def _key(request: Request) -> str | None:
    """The name of the key that the request came with."""
    return getattr(request.state, "key", None)


def _event(value: Event) -> bytes:
    return f"event: {value['type']}\ndata: {to_json(value)}\n\n".encode()


def _error_event(error: BaseException) -> bytes:
    found = error_dict(error)[1]["error"]
    return _event({"type": "error", "code": found["code"], "message": found["message"], "param": None})
