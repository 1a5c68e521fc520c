"""One conversation to be answered: what OpenAI's chats and responses and Anthropic's messages all come to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from ..async_llama import AsyncLlama
from ..chat.methods import prepare_all
from ..chat.request import ChatRequest
from ..chat.results import ChatChunk, ChatCompletion
from ..errors import InvalidRequest
from ..sampling_params import SamplingParams
from .events import while_connected
from .media import check_media
from .served_model import ServedModel
from .state import ServerState
from .usage import FINISH

MOST_MESSAGES = 4096


@dataclass
class ChatTurn:
    """A conversation, and how it is to be answered.

    Attributes:
        messages: in OpenAI's form.
        params: settings of the generation.
        options: the chat layer's arguments (`Llama.chat`): tools, tool_choice, response_format, …
        reasoning: take the model's thinking apart from its answer; else both are content.
        stopped_by: the stop string that ended the (first) answer, once it has ended by one.
    """

    messages: list[dict[str, Any]]
    params: SamplingParams
    options: dict[str, Any] = field(default_factory=dict)
    reasoning: bool = True
    stopped_by: str | int | None = None

    async def prepared(self, llm: AsyncLlama) -> ChatRequest:
        """The rendered prompt, ready to be generated.

        Raises:
            InvalidRequest: the conversation or a setting is not acceptable.
        """
        if len(self.messages) > MOST_MESSAGES:
            raise InvalidRequest(f"the conversation has {len(self.messages)} messages, more than {MOST_MESSAGES}")
        check_media(self.messages)
        # rendering and compiling a grammar take milliseconds, encoding an image seconds: not in the event loop
        requests, _ = await asyncio.to_thread(prepare_all, llm.llama, self.messages, self.params, self.options)
        if not self.reasoning:
            requests[0].leave_reasoning()
        return requests[0]

    async def answer(self, state: ServerState, request: Request, model: ServedModel) -> ChatCompletion:
        """The whole answer; it is cancelled when the client leaves."""
        llm = model.text()

        async def work() -> ChatCompletion:
            prepared = await self.prepared(llm)
            made = await llm.generate(prepared.prompt, prepared.params)
            completions = made if isinstance(made, list) else [made]
            self.stopped_by = completions[0].stop_reason
            return prepared.answer(completions)

        done = await while_connected(request.receive, work())
        reasons = [FINISH[choice.finish_reason] for choice in done.choices]
        state.finished(request, model, [(done.usage, done.timings, reasons[0])])
        return done

    async def chunks(
        self, state: ServerState, request: Request, model: ServedModel, prepared: ChatRequest
    ) -> AsyncGenerator[tuple[int, ChatChunk], None]:
        """The answer's pieces, each with the number of its choice."""
        params, done = prepared.params, []
        parsers = [prepared.stream() for _ in range(params.n)]
        chunks: Any = model.text().stream(prepared.prompt, params)
        async with contextlib.aclosing(chunks):
            async for part in chunks:
                if part.completion is not None and not part.index:
                    self.stopped_by = part.completion.stop_reason
                for chunk in parsers[part.index].feed(part):
                    if chunk.completion is not None:
                        done.append(chunk.completion)
                    yield part.index, chunk
        state.finished(request, model, [(d.usage, d.timings, FINISH[d.finish_reason]) for d in done])
