"""The models that a server offers: loaded when first asked for, freed when idle, within a budget of memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from ..errors import InvalidRequest, LlcudaError
from .errors import Refused
from .served_model import Engine, Kind, ServedModel

log = logging.getLogger("llcuda_ffi.server")


class Models:
    """The models of a server. One event loop uses them.

    A request holds its model (`use`) from before its first token to after its last: no model is freed under one. Where
    the budget has no room for a model that is asked for, the one that was idle longest leaves; where all are busy, one
    takes no new requests until it is idle, leaves, and those requests wait for it to come back.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        memory_budget: int | None = None,
        idle_timeout: float | None = None,
        lenient: bool = False,
    ) -> None:
        """Take the models; none is loaded by this.

        Args:
            memory_budget: most bytes of models loaded at once (estimates, see ServedModel.size).
            idle_timeout: seconds without a request after which a model that is not pinned is freed.
            lenient: a name that is not known means the first model of the kind.

        Raises:
            InvalidRequest: no model, or two with one name.
        """
        if not models:
            raise InvalidRequest("a server needs a model")
        self._models = list(models)
        self.memory_budget, self.idle_timeout, self.lenient = memory_budget, idle_timeout, lenient
        self._names: dict[str, ServedModel] = {}
        for model in models:
            for name in model.names:
                if self._names.setdefault(name, model) is not model:
                    raise InvalidRequest(f"two models are called {name!r:.100}: give one an --alias")
        self._changed = asyncio.Event()
        self._loading = asyncio.Lock()
        self._loads: dict[ServedModel, asyncio.Task[None]] = {}

    @classmethod
    def of(cls, *engines: Engine, names: Sequence[str] = ()) -> Models:
        """Models that are loaded already, for an application of your own.

        Args:
            names: how the API shows them; by default their files' names.
        """
        given = [*names, *[None] * (len(engines) - len(names))]
        return cls([ServedModel.of(engine, name) for engine, name in zip(engines, given, strict=True)])

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def find(self, name: object, kind: Kind | None = None) -> ServedModel:
        """The model of a name; None and "" mean the first of the kind.

        Raises:
            Refused: 404, no such model.
            InvalidRequest: it is of another kind, or there is none of the kind.
        """
        if isinstance(name, str) and name in self._names:
            model = self._names[name]
            if kind is not None:
                model.as_kind(kind)
            return model
        if name not in (None, "") and not self.lenient:
            known = ", ".join(m.name for m in self._models[:20])
            raise Refused(404, f"no model is called {name!r:.100}: there is {known}", "model_not_found")
        fitting = [m for m in self._models if kind in (None, m.kind)]
        if not fitting:
            raise InvalidRequest(f"no model of this server is of the kind {kind!r}: start it with one")
        return fitting[0]

    @contextlib.asynccontextmanager
    async def use(self, model: ServedModel) -> AsyncIterator[ServedModel]:
        """The model loaded, and kept while inside.

        Raises:
            LlcudaError: it cannot be loaded.
        """
        await self._take(model)
        try:
            yield model
        finally:
            self._give(model)

    async def _take(self, model: ServedModel) -> None:
        """Wait until it is loaded, and count as one of its users."""
        if model.failure is not None and model.reloads and not model.leaving:
            await self.unload(model)  # its engine is dead: a new one is made
        if model.engine is not None and not model.leaving:
            model.users += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        model.waiting.append(turn)
        if model not in self._loads:
            self._loads[model] = asyncio.ensure_future(self._load(model))
        try:
            await turn
        except asyncio.CancelledError:
            if turn in model.waiting:
                model.waiting.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:
                self._give(model)  # it was counted already
            raise

    def _give(self, model: ServedModel) -> None:
        """Count one user less."""
        model.users -= 1
        model.last_used = time.monotonic()
        if not model.users:
            self._notify()

    def _notify(self) -> None:
        """Wake what waits for a model's users to end."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _load(self, model: ServedModel) -> None:
        """Load it, and make all that wait for it its users, so that it is not freed before they come to it."""
        error: Exception | None = None
        try:
            async with self._loading:
                if model.engine is None:
                    await self._make_room(model)
                    began = time.monotonic()
                    await asyncio.to_thread(model.open)
                    log.info("%s is loaded, %.1f s", model.name, time.monotonic() - began)
        except Exception as caught:
            error = caught
        finally:
            del self._loads[model]
            model.last_used = time.monotonic()
            turns, model.waiting = [turn for turn in model.waiting if not turn.done()], []
            for turn in turns:
                if model.engine is not None:
                    model.users += 1
                    turn.set_result(None)
                elif error is not None:
                    turn.set_exception(error)
                else:  # the server ends
                    turn.cancel()

    async def _make_room(self, model: ServedModel) -> None:
        """Free models until `model` fits the budget.

        Raises:
            InvalidRequest: it never fits beside those that are pinned.
        """
        budget = self.memory_budget
        if budget is None:
            return
        pinned = sum(m.size for m in self._models if m.pinned and m.engine is not None and m is not model)
        if model.size + pinned > budget:
            raise InvalidRequest(
                f"{model.name} takes about {model.size >> 20} MiB, pinned models {pinned >> 20} MiB: more than the "
                f"server's budget of {budget >> 20} MiB"
            )
        while sum(m.size for m in self._models if m.engine is not None) + model.size > budget:
            there = [m for m in self._models if m.engine is not None and not m.pinned]
            await self._free(min(there, key=lambda m: (m.users > 0, m.last_used)))

    async def _free(self, model: ServedModel) -> None:
        model.leaving = True
        try:
            while model.users:
                await self._changed.wait()
            await asyncio.to_thread(model.close)
            log.info("%s is freed", model.name)
        finally:
            model.leaving = False
            self._notify()

    async def unload(self, model: ServedModel) -> None:
        """Free a model when its requests are over; a later request loads it again."""
        async with self._loading:
            if model.engine is not None and not model.leaving:
                await self._free(model)

    async def free_idle(self) -> None:
        """Free models whose idle time is over, for ever; cancel it to stop."""
        limit = self.idle_timeout
        if limit is None:
            return
        while True:
            await asyncio.sleep(min(limit, 5.0) / 2)
            now = time.monotonic()
            for model in self._models:
                if model.engine is not None and not (model.pinned or model.users) and now - model.last_used >= limit:
                    await self.unload(model)

    def load_at_start(self, models: Sequence[ServedModel]) -> None:
        """Load models before the server answers, as far as the budget goes; blocking.

        Raises:
            LlcudaError: one cannot be loaded.
        """
        for model in models:
            there = sum(m.size for m in self._models if m.engine is not None)
            if self.memory_budget is None or there + model.size <= self.memory_budget:
                model.open()
                model.last_used = time.monotonic()

    def close(self) -> None:
        """Free all."""
        for model in self._models:
            model.close()


def in_folder(folder: Path) -> Iterator[Path]:
    """The GGUF models of a folder: each file, or the first of a model's parts; not projectors of vision models."""
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder of models")
    for path in sorted(folder.rglob("*.gguf")):
        part = path.stem.rpartition("-of-")[0].rpartition("-")[2]
        if (not part.isdigit() or int(part) == 1) and not path.name.lower().startswith("mmproj"):
            yield path


def found_in(folder: Path, **options: object) -> Iterator[ServedModel]:
    """The models of a folder that can be read, named by their paths in it; others are named in the log."""
    for path in in_folder(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            yield ServedModel.find(path, name=name, **options)  # type: ignore[arg-type]
        except LlcudaError as error:
            log.warning("%s is left out: %s", path, error)
