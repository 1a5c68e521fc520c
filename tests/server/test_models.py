"""The pool of models, with engines that only count: who is freed, who waits, what a failed load leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.server.errors import Refused
from llcuda_ffi.server.models import Models, in_folder
from llcuda_ffi.server.served_model import ServedModel


class Counted(ServedModel):
    """A model whose engine is a mark; it counts how often it is opened."""

    def __init__(self, name: str, size: int = 1, **options: object) -> None:
        super().__init__(name, "text", name, size=size, **options)  # type: ignore[arg-type]
        self.opened, self.fails = 0, False

    def open(self) -> None:
        if self.fails:
            raise InvalidRequest("no memory")
        self.opened += 1
        self.engine = object()  # type: ignore[assignment]

    def close(self) -> None:
        self.engine = None


def test_the_longest_idle_leaves() -> None:
    """Room is made by the model that nobody used for longest; a pinned one stays; one that never fits is refused."""

    async def run() -> None:
        a, b, c, huge = Counted("a"), Counted("b", pinned=True), Counted("c"), Counted("huge", size=3)
        models = Models([a, b, c, huge], memory_budget=2)
        for model in (a, b, c, b, c):
            async with models.use(model):
                assert model.engine is not None
        assert [m.opened for m in (a, b, c)] == [1, 1, 1]
        assert (a.engine is None, b.engine is None, c.engine is None) == (True, False, False)
        with pytest.raises(InvalidRequest, match="budget"):
            async with models.use(huge):
                pass

    asyncio.run(run())


def test_a_busy_model_leaves_after_its_requests() -> None:
    """A request for another model waits for the running one; later ones for the first wait until it is back."""

    async def run() -> list[str]:
        a, b = Counted("a"), Counted("b")
        models = Models([a, b], memory_budget=1)
        order: list[str] = []
        running, end = asyncio.Event(), asyncio.Event()

        async def long() -> None:
            async with models.use(a):
                running.set()
                await end.wait()
                order.append("a ends")

        async def short(model: Counted) -> None:
            async with models.use(model):
                order.append(f"{model.name} again" if model is a else "b")

        first = asyncio.ensure_future(long())
        await running.wait()
        second = asyncio.ensure_future(short(b))
        while not a.leaving:
            await asyncio.sleep(0)
        third = asyncio.ensure_future(short(a))
        for _ in range(10):
            await asyncio.sleep(0)
        end.set()
        await asyncio.gather(first, second, third)
        assert (a.opened, b.opened) == (2, 1)
        return order

    assert asyncio.run(run()) == ["a ends", "b", "a again"]


def test_one_load_for_all_who_ask() -> None:
    """Ten at once load a model once; one that leaves does not stop it; a failed load is told to all and tried anew."""

    async def run() -> None:
        a = Counted("a")
        models = Models([a])

        async def ask() -> None:
            async with models.use(a):
                pass

        tasks = [asyncio.ensure_future(ask()) for _ in range(10)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (a.opened, a.users) == (1, 0)
        await models.unload(a)
        a.fails = True
        results = await asyncio.gather(ask(), ask(), return_exceptions=True)
        assert [type(r) for r in results] == [InvalidRequest] * 2
        a.fails = False
        await ask()
        assert a.opened == 2

    asyncio.run(run())


def test_idle_models_are_freed() -> None:
    """After the idle time a model is freed, a pinned one and one in use are not."""

    async def run() -> None:
        a, b, c = Counted("a"), Counted("b", pinned=True), Counted("c")
        models = Models([a, b, c], idle_timeout=0.02)
        models.load_at_start([a, b, c])
        watch = asyncio.ensure_future(models.free_idle())
        async with models.use(c):
            while a.engine is not None:
                await asyncio.sleep(0.005)
            assert (b.engine is None, c.engine is None) == (False, False)
        watch.cancel()

    asyncio.run(run())


def test_names() -> None:
    """A name is found by alias too; None is the first; another is 404, or the first where the server is lenient."""
    a, b = Counted("a", aliases=["x"]), Counted("b")
    models = Models([a, b])
    assert (models.find("x"), models.find(None), models.find("b", "text")) == (a, a, b)
    for name in ("y", 1, ["a"]):
        with pytest.raises(Refused):
            models.find(name)
    with pytest.raises(InvalidRequest):
        models.find("a", "rerank")
    assert Models([a, b], lenient=True).find("gpt-4o", "text") is a
    with pytest.raises(InvalidRequest, match="two models"):
        Models([a, Counted("x")])


def test_folder(tmp_path: Path) -> None:
    """Of a model in parts the first is taken; projectors and other files are not."""
    for name in ("b.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "mmproj-b.gguf", "b.txt", "sub/c.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in in_folder(tmp_path)] == ["b.gguf", "m-00001-of-00002.gguf", "c.gguf"]
    with pytest.raises(InvalidRequest):
        list(in_folder(tmp_path / "none"))
