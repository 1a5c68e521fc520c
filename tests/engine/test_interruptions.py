"""Exceptions at every line of the engine: no request is lost or answered twice, the loop is usable or clearly dead."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from linecache import getline
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import Any

import pytest

import llcuda_ffi.engine.loop as loop_module
from llcuda_ffi.engine.loop import EngineLoop
from llcuda_ffi.engine.request import Request
from llcuda_ffi.errors import BackendFailure, DecodeError, EngineFailure
from tests.support.fake_engine import FakeContext, expected, make_loop, make_request

pytestmark = pytest.mark.usefixtures("quiet")
ENGINE = str(Path(loop_module.__file__).parent)
BASE = [7, 8, 9, 10] * 12
Place = tuple[str, int]


class Trap:
    """Raises an exception when a line of the engine is reached for the n-th time; without a line it notes all lines."""

    def __init__(
        self, place: Place | None = None, hit: int = 1, error: type[BaseException] = KeyboardInterrupt
    ) -> None:
        self.place, self.hit, self.error = place, hit, error
        self.seen: dict[Place, int] = {}
        self.sprung = False

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(ENGINE):
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" and not self.sprung:
            place = frame.f_code.co_filename, frame.f_lineno
            self.seen[place] = self.seen.get(place, 0) + 1
            if place == self.place and self.seen[place] == self.hit:
                self.sprung = True
                raise self.error("made by this test")
        return self._line

    def run(self, function: Callable[[], object]) -> None:
        """Call the function under the trap."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        finally:
            sys.settrace(before)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Each of a thousand exceptions would be logged with its traceback."""
    caplog.set_level(logging.CRITICAL, "llcuda_ffi.engine")


def make_requests() -> list[Request]:
    """Prompts that share their beginnings, more than there are slots, one that ends by its stop string."""
    prompts = [BASE, [*BASE[:30], 5], [11, 12], [*BASE, 6], [13]]
    return [make_request(p, 4, stop=("q",) if i == 2 else ()) for i, p in enumerate(prompts)]


def scenario(loop: EngineLoop, requests: list[Request], settle: bool) -> None:
    """Submit, cancel one, run a command, wait for all. With `settle` what is interrupted is tried again."""
    steps: list[Callable[[], object]] = [
        lambda: loop.submit(*[r for r in requests if not known(loop, r)]),
        lambda: loop.cancel(requests[1]),
        lambda: loop.call(lambda scheduler: scheduler.prefixes.clear()),
        *(lambda r=r: loop.wait(r) for r in requests),  # type: ignore[misc]
    ]
    for step in steps:
        try:
            step()
        except KeyboardInterrupt:
            if not settle:
                raise
            step()


def known(loop: EngineLoop, request: Request) -> bool:
    return request.done or any(request in scheduler._requests for scheduler in loop.schedulers)


def finish(loop: EngineLoop, requests: list[Request]) -> None:
    """Wait for those that were submitted."""
    for request in requests:
        if known(loop, request):
            try:
                loop.wait(request)
            except EngineFailure:
                pass


def lines() -> list[Place]:
    """Every line of the engine that the scenario reaches.

    Not those of `with`: to a tracer they come again when the block is left, where the interpreter handles no signal
    and allocates nothing.
    """
    trap = Trap()
    trap.run(lambda: scenario(make_loop(FakeContext(3)), make_requests(), settle=False))
    return [(name, line) for name, line in sorted(trap.seen) if not getline(name, line).lstrip().startswith("with ")]


LINES = lines()


def check(loop: EngineLoop, requests: list[Request]) -> Iterator[str]:
    """What is wrong after all."""
    for i, request in enumerate(requests):
        if not request.done:
            yield f"request {i} is lost"
        elif (request.completion is None) == (request.error is None):
            yield f"request {i} has two answers, or none"
        elif request.completion is not None:
            right = expected(request.prompt.tolist(), 4)
            got = request.completion.token_ids
            if got != right[: len(got)] or (request.completion.finish_reason == "length" and got != right):
                yield f"request {i} has {got} ({request.completion.finish_reason}), not {right}"
    for scheduler in loop.schedulers:
        if not scheduler.idle or scheduler.running:
            yield "something is left"


def test_the_scenario_reaches_the_engine() -> None:
    """The lines that are tried are those of the loop, the scheduler and what they use."""
    files = {Path(name).name for name, _ in LINES}
    assert {"loop.py", "scheduler.py", "queue.py", "plan.py", "slot.py", "prefix_cache.py", "request.py"} <= files
    assert len(LINES) > 250


def test_interrupted_anywhere() -> None:
    """Ctrl-C at any line: the caller goes on, every request ends with the tokens that it has without it."""
    wrong = []
    for place in LINES:
        for hit in (1, 4):
            loop, requests = make_loop(FakeContext(3)), make_requests()
            trap = Trap(place, hit)
            trap.run(lambda loop=loop, requests=requests: scenario(loop, requests, settle=True))  # type: ignore[misc]
            wrong += [f"{Path(place[0]).name}:{place[1]} ({hit}): {what}" for what in check(loop, requests)]
            if loop.failure is not None:
                wrong.append(f"{Path(place[0]).name}:{place[1]} ({hit}): dead of {loop.failure!r}")
            again = make_request([20, 21], 4)
            loop.submit(again)
            loop.wait(again)
            wrong += [f"{Path(place[0]).name}:{place[1]} ({hit}): later {what}" for what in check(loop, [again])]
    assert wrong == []


@pytest.mark.parametrize("error", [MemoryError, BackendFailure])
def test_failing_anywhere(error: type[Exception]) -> None:
    """Any other exception at any line ends one request with the cause, or all of them with EngineFailure."""
    wrong = []
    for place in LINES:
        loop, requests = make_loop(FakeContext(3)), make_requests()
        try:
            Trap(place, 1, error).run(lambda loop=loop, requests=requests: scenario(loop, requests, settle=False))  # type: ignore[misc]
        except (error, DecodeError):
            pass  # the caller's own step failed: submitting, waiting
        where = f"{Path(place[0]).name}:{place[1]}"
        finish(loop, requests)
        wrong += [f"{where}: {what}" for what in check(loop, [r for r in requests if known(loop, r)])]
        try:
            loop.check()
        except EngineFailure as failure:
            if loop.failure is not failure.__cause__ or not isinstance(loop.failure, error):
                wrong.append(f"{where}: dead of {loop.failure!r}")
        else:
            again = make_request([20, 21], 4)
            loop.submit(again)
            loop.wait(again)
            wrong += [f"{where}: later {what}" for what in check(loop, [again])]
    assert wrong == []


def test_failing_anywhere_in_a_thread() -> None:
    """The same where threads of the engine lead: whoever waits is answered, whatever happened."""
    wrong = []
    for place in LINES:
        trap = Trap(place, 1, MemoryError)
        threading.settrace(trap)
        try:
            loop, requests = make_loop(FakeContext(3)), make_requests()
            loop.start()
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
        try:
            scenario(loop, requests, settle=False)
        except (EngineFailure, MemoryError):  # a command's own exception is its caller's
            finish(loop, requests)
        where = f"{Path(place[0]).name}:{place[1]}"
        mine = [r for r in requests if known(loop, r)]
        ended = monotonic() + 10  # its thread may be in the middle of a step
        while (found := list(check(loop, mine))) and monotonic() < ended:
            sleep(0.005)
        wrong += [f"{where}: {what}" for what in found]
        loop.close()
        if not loop.closed or any(replica.thread and replica.thread.is_alive() for replica in loop._replicas):
            wrong.append(f"{where}: not closed")
    assert wrong == []
