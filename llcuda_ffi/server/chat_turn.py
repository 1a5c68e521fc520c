"""One conversation to be answered: what OpenAI's chats and responses and Anthropic's messages all come to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from ..chat.methods import prepare_all
from ..chat.request import ChatRequest
from ..chat.results import ChatChunk, ChatCompletion
from ..engine.results import Completion
from ..errors import InvalidRequest
from ..sampling_params import SamplingParams
from .events import while_connected
from .media import check_media
from .served_model import ServedModel
from .state import Asked
from .usage import FINISH

MOST_MESSAGES = 4096
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass
class ChatTurn:
    """A conversation, and how it is to be answered.

    Attributes:
        messages: in OpenAI's form.
        params: settings of the generation.
        options: the chat layer's arguments (`Llama.chat`): tools, tool_choice, response_format, …
        reasoning: take the model's thinking apart from its answer; else both are content.
        stopped_by: the stop string that ended the (first) answer, once it has ended by one.
        completions: what the engine made, once `answer` has it.
    """

    messages: list[dict[str, Any]]
    params: SamplingParams
    options: dict[str, Any] = field(default_factory=dict)
    reasoning: bool = True
    stopped_by: str | int | None = None
    completions: list[Completion] = field(default_factory=list)

    async def prepared(self, asked: Asked) -> ChatRequest:
        """The rendered prompt, ready to be generated.

        Raises:
            InvalidRequest: the conversation or a setting is not acceptable.
            ClientLeft: the client did.
        """
        return await while_connected(asked.request.receive, self._prepared(asked.model))

    async def _prepared(self, model: ServedModel) -> ChatRequest:
        if len(self.messages) > MOST_MESSAGES:
            raise InvalidRequest(f"the conversation has {len(self.messages)} messages, more than {MOST_MESSAGES}")
        check_media(self.messages)
        llama, options = model.text().llama, {"template": model.template, **self.options}
        given = {**model.template_variables, **(options.get("chat_template_kwargs") or {})}
        options["chat_template_kwargs"] = given or None
        if options.get("tool_choice") not in ("auto", "none", None):
            options["response_format"] = None  # it is about texts, and the answer will be calls
        # rendering and compiling a grammar take milliseconds, encoding an image seconds: not in the event loop
        requests, _ = await asyncio.to_thread(prepare_all, llama, self.messages, self.params, options)
        if not self.reasoning:
            requests[0].leave_reasoning()
        return requests[0]

    async def answer(self, asked: Asked) -> ChatCompletion:
        """The whole answer; it is cancelled when the client leaves."""
        llm = asked.model.text()

        async def work() -> ChatCompletion:
            prepared = await self._prepared(asked.model)
            made = await llm.generate(prepared.prompt, prepared.params)
            self.completions = made if isinstance(made, list) else [made]
            self.stopped_by = self.completions[0].stop_reason
            return prepared.answer(self.completions)

        done = await while_connected(asked.request.receive, work())
        reasons = [FINISH[choice.finish_reason] for choice in done.choices]
        asked.finished([(done.usage, done.timings, reasons[0])])
        return done

    async def chunks(self, asked: Asked, prepared: ChatRequest) -> AsyncGenerator[tuple[int, ChatChunk], None]:
        """The answer's pieces, each with the number of its choice."""
        params, done = prepared.params, []
        parsers = [prepared.stream() for _ in range(params.n)]
        async with contextlib.aclosing(asked.chunks([prepared.prompt], params)) as chunks:
            async for _, part in chunks:
                if part.completion is not None and not part.index:
                    self.stopped_by = part.completion.stop_reason
                for chunk in parsers[part.index].feed(part):
                    if chunk.completion is not None:
                        done.append(chunk.completion)
                    yield part.index, chunk
        asked.finished([(d.usage, d.timings, FINISH[d.finish_reason]) for d in done])
