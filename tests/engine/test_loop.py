"""The engine loop: commands between steps, leading and waiting, the ways to end."""

from __future__ import annotations

import threading

import pytest

from llcuda_ffi.engine.loop import EngineLoop
from llcuda_ffi.engine.request import Request
from llcuda_ffi.errors import Cancelled, ClosedError, ConcurrentUseError, EngineFailure, InvalidRequest
from tests.support.fake_engine import FakeContext, expected, make_loop, make_request


def long_request() -> Request:
    """One that is never done before it is cancelled."""
    return make_request([5], 100_000, ignore_eos=True, overflow="shift")


@pytest.fixture(params=["callers", "threads"])
def loop(request: pytest.FixtureRequest) -> EngineLoop:
    """A loop that its callers lead, or threads."""
    loop = make_loop(FakeContext(2), *([FakeContext(2)] if request.param == "threads" else []))
    assert loop.threaded == (request.param == "threads")
    return loop


def in_background(loop: EngineLoop, request: Request) -> threading.Thread:
    """Have a thread wait for a request that runs."""
    loop.submit(request)

    def wait() -> None:
        try:
            loop.wait(request)
        except (ClosedError, EngineFailure):
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    while not request.output.token_ids:
        pass
    return thread


def test_streams_give_every_token_once(loop: EngineLoop) -> None:
    """Chunks, made before a batch or while it is computed, hold each token once and in order; a stop string too."""
    requests = [make_request([20 + i], 40, stream=True, **({"stop": ["zz"]} if i % 2 else {})) for i in range(6)]
    loop.submit(*requests)
    for request in requests:
        loop.wait(request)
        chunks = []
        while (chunk := request.chunks.pop()) is not None:
            chunks.append(chunk)
        assert [token for chunk in chunks for token in chunk.token_ids] == request.result().token_ids
        assert "".join(chunk.text for chunk in chunks) == request.result().text
        assert request.result().token_ids == expected(request.prompt.tolist(), 40)
        assert chunks[-1].completion is not None
        assert len(chunks) > 1
    loop.close()


def test_commands_under_load(loop: EngineLoop) -> None:
    """Commands run while requests run, each between two steps: nothing is half done when they look."""
    running = [long_request() for _ in range(4)]
    threads = [in_background(loop, request) for request in running[:2]]
    for _ in range(50):
        for held in loop.call(lambda s: [(s.context.memory.tokens(x.index), x.n_past, x.request) for x in s.slots]):
            assert all(len(tokens) == n_past for tokens, n_past, request in held if request is not None)
    assert not any(request.done for request in running)
    with pytest.raises(InvalidRequest, match="made by this test"):
        loop.call(refuse)
    loop.cancel(*running)
    for thread in threads:
        thread.join()
    assert {request.result().finish_reason for request in running[:2]} == {"cancelled"}
    loop.close()


def refuse(scheduler: object) -> None:
    """A command that fails in a way that is known."""
    raise InvalidRequest("made by this test")


def test_cancelled_is_over(loop: EngineLoop) -> None:
    """What was cancelled before a command has no slot when it runs, and its tokens are kept."""
    request = make_request([4, 5, 6], 50, ignore_eos=True)
    loop.submit(request)
    loop.wait(request, lambda: len(request.output.token_ids) >= 3)
    loop.cancel(request)
    kept = [
        tokens
        for part in loop.call(lambda s: [slot.cached_tokens.tolist() for slot in s.prefixes.kept()])
        for tokens in part
    ]
    assert request.done
    assert [tokens[:3] for tokens in kept] == [[4, 5, 6]]
    loop.close()


def test_leading_is_passed_on() -> None:
    """A caller whose request is done leaves; another one goes on with its own."""
    loop = make_loop(FakeContext(3))
    requests = [make_request([i + 1, 30], 5 * i + 3, ignore_eos=True) for i in range(8)]
    threads = [threading.Thread(target=loop.wait, args=(request,)) for request in requests]
    loop.submit(*requests)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(request.result().token_ids) == request.limit for request in requests)
    assert not loop.in_use


def test_close(loop: EngineLoop) -> None:
    """Refused while a thread waits in a call; with `wait` that call ends too. Every request ends with Cancelled."""
    running, queued = long_request(), [long_request() for _ in range(9)]
    thread = in_background(loop, running)
    loop.submit(*queued)
    with pytest.raises(ConcurrentUseError, match="generating"):
        loop.close()
    assert not loop.closed
    loop.close(wait=True)
    thread.join()
    loop.close()
    assert loop.closed
    for request in (running, *queued):
        with pytest.raises(Cancelled):
            request.result()
    for use in (lambda: loop.submit(long_request()), lambda: loop.call(refuse), loop.check):
        with pytest.raises(ClosedError):
            use()  # type: ignore[operator]


def test_failure(loop: EngineLoop, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that nobody expects ends the loop: requests, waiting threads and later calls all say why."""
    running = [long_request() for _ in range(6)]
    threads = [in_background(loop, request) for request in running[:2]]
    loop.submit(*running[2:])

    def fail(*_: object) -> None:
        raise ZeroDivisionError("made by this test")

    loop.schedulers[0].selection.ahead = fail  # type: ignore[method-assign]
    for thread in threads:
        thread.join()
    for request in running:
        with pytest.raises(EngineFailure, match="ZeroDivisionError: made by this test"):
            loop.wait(request)
            request.result()
    assert isinstance(loop.failure, ZeroDivisionError)
    assert "made by this test" in caplog.text
    for use in (lambda: loop.submit(long_request()), lambda: loop.call(refuse), loop.check):
        with pytest.raises(EngineFailure) as caught:
            use()  # type: ignore[operator]
        assert caught.value.__cause__ is loop.failure
    loop.close()
    with pytest.raises(ClosedError):
        loop.check()


def test_use_of_the_context_by_others() -> None:
    """A step that finds the context in use is computed again: no request fails."""
    context = FakeContext(2)
    loop = make_loop(context)
    context.fail = ConcurrentUseError("this Context is in use by another call")
    request = make_request([1, 2], 4)
    loop.submit(request)
    loop.wait(request)
    assert request.result().token_ids == expected([1, 2], 4)
    assert loop.failure is None


def test_threads_from_a_point_on() -> None:
    """`start` hands what waits to a thread."""
    loop = make_loop(FakeContext(1))
    requests = [make_request([i + 1], 3) for i in range(5)]
    loop.submit(*requests)
    loop.start()
    loop.start()
    for request in requests:
        loop.wait(request)
        assert request.result().token_ids == expected(request.prompt.tolist(), 3)
    loop.close()
    assert not any(thread.name == "llcuda_ffi-engine" for thread in threading.enumerate())
