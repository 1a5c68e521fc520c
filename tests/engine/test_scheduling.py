"""Plans, admission, reuse, cancelling, failing and shifting, on a context without a model, whose answers are known."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llcuda_ffi.core.memory import MemoryKind
from llcuda_ffi.engine.request import Request
from llcuda_ffi.engine.scheduler import Scheduler
from llcuda_ffi.engine.slot import State
from llcuda_ffi.errors import BackendFailure, Cancelled, ContextOverflow
from tests.support.fake_engine import FakeContext, expected, make_request, make_scheduler

BASE = [7, 8, 9, 10] * 12


def check(scheduler: Scheduler, context: FakeContext) -> None:
    """What must be true between any two steps: slots, memory and queue tell the same."""
    for slot in scheduler.slots:
        held = context.memory.tokens(slot.index)
        if slot.request is None:
            assert slot.state is State.IDLE
            assert held == slot.cached_tokens.tolist()
            continue
        assert not slot.request.done
        assert len(held) == slot.n_past
        if slot.state is State.PROMPT:
            assert held == slot.pending_tokens[: slot.n_past].tolist()
    requests = [slot.request for slot in scheduler.slots if slot.request is not None]
    assert len(set(requests)) == len(requests) == scheduler.running
    assert scheduler.idle == (scheduler.running + scheduler.queued == 0)


def finish(scheduler: Scheduler, context: FakeContext, steps: int = 3000) -> None:
    """Step until nothing is left."""
    for _ in range(steps):
        if scheduler.idle:
            return
        scheduler.step()
        check(scheduler, context)
    raise AssertionError("the scheduler does not come to an end")


def is_right(request: Request) -> bool:
    """Whether a finished request has the tokens that it must have."""
    right = expected(request.prompt.tolist(), request.limit)
    found = request.result()
    if found.finish_reason == "cancelled":
        return found.token_ids == right[: len(found.token_ids)]
    return found.token_ids == right


prompts = st.builds(
    lambda shared, own: BASE[:shared] + own, st.integers(0, 40), st.lists(st.integers(1, 299), min_size=1, max_size=12)
)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), prompts, st.integers(1, 8), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("clear")),
        st.tuples(st.just("fail")),
    ),
    max_size=20,
)


@settings(max_examples=300, deadline=None)
@given(
    moves=moves,
    n_seq=st.integers(1, 4),
    cells=st.sampled_from([None, 64, 90, 200]),
    recurrent=st.booleans(),
    n_batch=st.sampled_from([8, 32]),
    cache=st.booleans(),
)
def test_any_order_of_events(
    moves: list[tuple[Any, ...]], n_seq: int, cells: int | None, recurrent: bool, n_batch: int, cache: bool
) -> None:
    """Whatever is submitted, cancelled, cleared and broken in whatever order, with shared or own cells that may be few:
    each request ends once, with its own tokens, a beginning of them where it was cancelled, or the failure."""
    kind = MemoryKind.RECURRENT if recurrent else MemoryKind.FULL
    context = FakeContext(n_seq, 64, cells=cells, n_batch=n_batch, n_ubatch=8, kind=kind)
    scheduler = make_scheduler(context, prefix_cache=cache)
    requests: list[Request] = []
    failures = 0
    for move in moves:
        if move[0] == "submit":
            _, prompt, limit, priority, reuse = move
            requests.append(make_request(prompt, limit, priority=priority, prefix_cache=reuse))
            scheduler.submit(requests[-1])
        elif move[0] == "cancel" and requests:
            scheduler.cancel(requests[move[1] % len(requests)])
        elif move[0] == "clear":
            scheduler.between_steps(lambda s: s.prefixes.clear())
        elif move[0] == "fail":
            context.fail, failures = BackendFailure("made by this test"), failures + 1
        else:
            for _ in range(move[1]):
                scheduler.step()
                check(scheduler, context)
    finish(scheduler, context)
    for request in requests:
        assert request.done
        assert (request.completion is None) != (request.error is None)
        if request.error is None:
            assert is_right(request)
        else:
            assert isinstance(request.error, (BackendFailure, ContextOverflow))
            assert failures or cells
    assert scheduler.selection.held == set()  # type: ignore[attr-defined]
    metrics = scheduler.metrics
    assert metrics.requests + metrics.failures == len(requests)


@pytest.mark.parametrize("shared", [0, 1, 20, 47, 48])
@pytest.mark.parametrize("cells", [None, 192])
@pytest.mark.parametrize("kind", [MemoryKind.FULL, MemoryKind.RECURRENT])
def test_reuse(shared: int, cells: int | None, kind: MemoryKind) -> None:
    """What two prompts share is computed once where the memory can go back to it, and never wrongly."""
    context = FakeContext(2, 64, cells=cells, kind=kind)
    scheduler = make_scheduler(context)
    first, second = make_request(BASE, 3), make_request([*BASE[:shared], 250, 251], 3)
    for request in (first, second):
        scheduler.submit(request)
        finish(scheduler, context)
        assert is_right(request)
    if kind is MemoryKind.FULL and shared >= 24:  # shorter ones are copied only where a copy costs nothing
        assert second.result().usage.cached_tokens == shared
    if kind is MemoryKind.RECURRENT:
        assert second.result().usage.cached_tokens == 0


def test_priority_then_arrival() -> None:
    """Slots are given by priority, then in the order of arrival."""
    context = FakeContext(1)
    scheduler = make_scheduler(context)
    requests = [make_request([5 + i], 2, priority=priority) for i, priority in enumerate([0, 0, 3, 0, 3, -1])]
    for request in requests:
        scheduler.submit(request)
    finish(scheduler, context)
    order = sorted(range(6), key=lambda i: requests[i].progress.t_slot)
    assert order == [2, 4, 0, 1, 3, 5]


def test_streams_go_on_beside_a_long_prompt() -> None:
    """While a prompt is computed in parts, a running request gets a token in every step, and no step is larger than a
    micro-batch beside it."""
    context = FakeContext(2, 256, n_batch=32, n_ubatch=8)
    scheduler = make_scheduler(context)
    running = make_request([3], 40)
    assert len(expected([3], 40)) == 40
    scheduler.submit(running)
    scheduler.step()
    scheduler.submit(make_request(list(range(1, 101)), 2))
    for _ in range(10):
        before = len(running.output.token_ids)
        scheduler.step()
        assert len(running.output.token_ids) == before + 1
        assert len(context.decodes[-1]) <= 9


@pytest.mark.parametrize(
    ("kind", "cells", "bridged"),
    [(MemoryKind.FULL, None, True), (MemoryKind.RECURRENT, None, False), (MemoryKind.FULL, 400, False)],
)
def test_gaps_between_sequences_are_filled(kind: MemoryKind, cells: int | None, bridged: bool) -> None:
    """Streams with idle sequences between them are computed as neighbours: those get a token that is taken back, where
    each has cells of its own and a token can be taken back."""
    context = FakeContext(5, 80, cells=cells, kind=kind)
    scheduler = make_scheduler(context)
    limits = [30, 3, 30, 2, 30]
    requests = [make_request([*BASE[: 10 + i], 100 + i], limit) for i, limit in enumerate(limits)]
    assert [len(expected(r.prompt.tolist(), limit)) for r, limit in zip(requests, limits, strict=True)] == limits
    for request in requests:
        scheduler.submit(request)
    for _ in range(8):
        scheduler.step()
        check(scheduler, context)
    assert [seq for seq, _, _ in context.decodes[-1]] == ([0, 1, 2, 3, 4] if bridged else [0, 2, 4])
    later = make_request([*BASE[:11], 101, *expected([*BASE[:11], 101], 2), 60], 4)  # continues what sequence 1 keeps
    scheduler.submit(later)
    finish(scheduler, context)
    assert all(is_right(request) for request in (*requests, later))
    if kind is MemoryKind.FULL:
        assert later.result().usage.cached_tokens == 14


def test_prompts_are_computed_whole() -> None:
    """Where many wait and few stream, a step computes several prompts, each whole and in the order of arrival; one
    that finds no room any more waits for the next step."""
    context = FakeContext(8, 64, n_batch=64, n_ubatch=16)
    scheduler = make_scheduler(context)
    scheduler.submit(make_request([3], 40))
    scheduler.step()
    prompts = [make_request([10 + i] * 14, 30) for i in range(6)]
    for request in prompts:
        scheduler.submit(request)
    scheduler.step()
    assert [len(request.output.token_ids) for request in prompts] == [1, 1, 1, 1, 0, 0]
    scheduler.step()
    assert [len(request.output.token_ids) for request in prompts] == [2, 2, 2, 2, 1, 0]
    finish(scheduler, context)
    assert all(is_right(request) for request in prompts)


def test_completions_of_one_prompt_compute_it_once() -> None:
    """The followers of a group wait for its first, then share what it computed."""
    context = FakeContext(4, 64, cells=256)
    scheduler = make_scheduler(context)
    first = make_request(BASE, 4)
    followers = [make_request(BASE, 4) for _ in range(3)]
    for i, follower in enumerate(followers, 1):
        follower.follow(first, i)
    for request in (first, *followers):
        scheduler.submit(request)
    finish(scheduler, context)
    assert all(is_right(request) for request in (first, *followers))
    assert [f.result().usage.cached_tokens for f in followers] == [len(BASE) - 1] * 3


@pytest.mark.parametrize("keep", [0, 4])
def test_shift(keep: int) -> None:
    """A request that outgrows its sequence forgets its middle and goes on, beside others that are not disturbed."""
    context = FakeContext(2, 32)
    scheduler = make_scheduler(context)
    params = {"overflow": "shift", "keep": keep, "ignore_eos": True}
    long, other = make_request([9, 9, 9], 200, **params), make_request([4, 5], 20)
    for request in (long, other):
        scheduler.submit(request)
    for _ in range(400):
        if scheduler.idle:
            break
        scheduler.step()
    assert len(long.result().token_ids) == 200
    assert is_right(other)


def test_cells_that_are_few() -> None:
    """Requests that do not fit together take turns; one that can never fit fails, the others do not."""
    context = FakeContext(4, 64, cells=64)
    scheduler = make_scheduler(context)
    requests = [make_request([i + 1] * 30, 8, prefix_cache=False) for i in range(6)]
    for request in requests:
        scheduler.submit(request)
    finish(scheduler, context)
    assert all(is_right(request) for request in requests)
    never = make_request([1] * 62, 60, ignore_eos=True)
    scheduler.submit(never)
    finish(scheduler, context)
    assert isinstance(never.error, ContextOverflow) or never.result().finish_reason == "length"


def test_a_failure_while_a_request_is_admitted() -> None:
    """An exception in the cache ends that request with the cause; the others, and later ones, are computed."""
    context = FakeContext(2)
    scheduler = make_scheduler(context)
    place = scheduler.prefixes.place
    calls = iter([place, None, place])

    def sometimes(*args: Any, **named: Any) -> Any:
        call = next(calls, place)
        if call is None:
            raise MemoryError("made by this test")
        return call(*args, **named)

    scheduler.prefixes.place = sometimes  # type: ignore[method-assign]
    requests = [make_request([i + 1, 2, 3], 4) for i in range(4)]
    for request in requests:
        scheduler.submit(request)
    finish(scheduler, context)
    failed = [request for request in requests if request.error is not None]
    assert failed == [requests[1]]
    assert isinstance(failed[0].error, BackendFailure)
    assert isinstance(failed[0].error.__cause__, MemoryError)
    assert all(is_right(request) for request in requests if request.error is None)


def test_abort_ends_the_batch() -> None:
    """A decode that somebody aborted ends the requests in it with Cancelled; the scheduler goes on."""
    context = FakeContext(2)
    scheduler = make_scheduler(context)
    requests = [make_request([i + 1], 4) for i in range(3)]
    for request in requests:
        scheduler.submit(request)
    context.fail = Cancelled("aborted")
    finish(scheduler, context)
    assert [type(request.error) for request in requests] == [Cancelled, Cancelled, type(None)]
    assert is_right(requests[2])


def test_many_are_cancelled() -> None:
    """8,000 requests with deadlines, waiting and running, cancelled at once: the next step ends each of them once."""
    context = FakeContext(2)
    scheduler = make_scheduler(context)
    requests = [make_request([1 + i % 250], 4, timeout=600 + random.random()) for i in range(8000)]
    for request in requests:
        scheduler.submit(request)
    scheduler.step()
    for request in requests:
        scheduler.cancel(request)
    assert not scheduler.step()
    assert scheduler.idle
    assert {request.result().finish_reason for request in requests} <= {"cancelled", "eog"}
    assert scheduler.metrics.requests == len(requests)
