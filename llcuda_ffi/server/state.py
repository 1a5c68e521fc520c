"""What the endpoints of one server share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from ..engine.prompts import Prompt
from ..engine.results import Chunk, Timings, Usage
from ..sampling_params import SamplingParams
from .body import BodyReader, Fields
from .events import EventStream, error_event, merged
from .gate import Gate
from .journal import Journal
from .models import Models
from .request_metrics import RequestMetrics
from .served_model import Kind, ServedModel


@dataclass
class ServerState:
    """The models, the bounds and the counters of a server.

    Attributes:
        models: what is served.
        gate: how many completions may run or wait.
        bodies: reads requests' bodies.
        metrics: what was measured of finished requests.
    """

    models: Models
    gate: Gate
    bodies: BodyReader
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    async def read(self, request: Request) -> Fields:
        """The fields of a request's body."""
        return await self.bodies.read(request)

    @contextlib.asynccontextmanager
    async def model(self, name: object, kind: Kind | None) -> AsyncIterator[ServedModel]:
        """The model of a name, loaded and kept while inside.

        Raises:
            Refused: 404, no such model.
            InvalidRequest: it is of another kind.
            LlcudaError: it cannot be loaded.
        """
        async with self.models.use(self.models.find(name, kind)) as model:
            yield model

    @contextlib.asynccontextmanager
    async def asked(self, request: Request, kind: Kind | None) -> AsyncIterator[Asked]:
        """A request read, and the model that it names loaded and kept: while inside, or to the end of its stream.

        Raises:
            as `read` and `model`.
        """
        fields = await self.read(request)
        name = fields.take("model")
        async with contextlib.AsyncExitStack() as held:
            model = await held.enter_async_context(self.model(name, kind))
            yield Asked(self, request, fields, name, model, held)


@dataclass
class Asked:
    """A request to a model.

    Attributes:
        fields: those of its body that nobody has taken yet.
        name: how it named the model.
        model: that model, loaded.
    """

    state: ServerState
    request: Request
    fields: Fields
    name: object
    model: ServedModel
    held: contextlib.AsyncExitStack

    def enter(self, count: int = 1) -> None:
        """Room for `count` completions, until the request is over.

        Raises:
            as Gate.enter.
        """
        self.held.enter_context(self.state.gate.enter(count))

    def stream(
        self, events: AsyncGenerator[bytes, None], error: Callable[[BaseException], bytes] = error_event
    ) -> EventStream:
        """The answer as events; the model and the room are held until the last one.

        Args:
            error: writes the event of an exception inside the stream.
        """
        return EventStream(events, self.held.pop_all(), self.state.gate, error)

    async def chunks(
        self, prompts: Sequence[Prompt], params: SamplingParams
    ) -> AsyncGenerator[tuple[int, Chunk], None]:
        """What the model writes for prompts, as it comes, each chunk with the number of its prompt.

        Goes on with an answer that another process began where the request has its journal.
        """
        journal: Journal | None = getattr(self.request.state, "journal", None)
        begun: list[list[Chunk]] = [[] for _ in prompts]
        if journal is not None:
            for entry in journal.earlier:
                begun[entry[0]].append(entry[1])
                yield entry
        llm = self.model.text()
        streams: list[Any] = [llm.stream(prompt, params, begun=begun[i]) for i, prompt in enumerate(prompts)]
        async with contextlib.aclosing(merged(streams)) as found:
            async for entry in found:
                if journal is not None:
                    journal.note(entry)
                yield entry

    def finished(self, done: Iterable[tuple[Usage, Timings, str]]) -> None:
        """Count finished completions (usage, timings, finish_reason), and note them for the log of their request."""
        metrics = self.state.metrics.of(self.model.name)
        prompt = generated = 0
        first = None
        for usage, timings, reason in done:
            metrics.finish(usage, timings, reason)
            prompt, generated, first = usage.prompt_tokens, generated + usage.completion_tokens, first or timings
        self.request.state.facts = {
            "model": self.model.name,
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "queue": None if first is None else round(first.queue_s, 4),
            "ttft": None if first is None else round(first.ttft_s, 4),
        }
