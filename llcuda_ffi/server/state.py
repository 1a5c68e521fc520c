"""What the endpoints of one server share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from starlette.requests import Request

from ..engine.results import Timings, Usage
from .body import BodyReader, Fields
from .gate import Gate
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
    async def model(self, name: object, kind: Kind) -> AsyncIterator[ServedModel]:
        """The model of a name, loaded and kept while inside.

        Raises:
            Refused: 404, no such model.
            InvalidRequest: it is of another kind.
            LlcudaError: it cannot be loaded.
        """
        async with self.models.use(self.models.find(name, kind)) as model:
            yield model

    def finished(self, request: Request, model: ServedModel, done: Iterable[tuple[Usage, Timings, str]]) -> None:
        """Count finished completions (usage, timings, finish_reason), and note them for the log of their request."""
        metrics, facts = self.metrics.of(model.name), {"model": model.name}
        prompt = generated = 0
        first = None
        for usage, timings, reason in done:
            metrics.finish(usage, timings, reason)
            prompt, generated, first = usage.prompt_tokens, generated + usage.completion_tokens, first or timings
        request.state.facts = {
            **facts,
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "queue": None if first is None else round(first.queue_s, 4),
            "ttft": None if first is None else round(first.ttft_s, 4),
        }
