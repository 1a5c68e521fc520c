"""Scheduler.step(): deterministic, without threads, against a one-at-a-time oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.engine.request import Request
from llcuda_ffi.engine.slot import State
from llcuda_ffi.errors import BackendFailure, Cancelled

TEXTS = ["Once upon a time", "The capital of France is", "def fib(n):", "One, two, three,", "Dear Sir or Madam,"]
LENGTH = 6


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, n_ctx=512, n_parallel=3) as llm:
        yield llm


@pytest.fixture(scope="module")
def oracle(llm: Llama) -> dict[str, list[int]]:
    """Each text's greedy answer, computed alone."""
    return {t: llm.generate(t, max_tokens=LENGTH, temperature=0, prefix_cache=False).token_ids for t in TEXTS}


def _request(llm: Llama, text: str, **settings_: object) -> Request:
    params = SamplingParams(**{"max_tokens": LENGTH, "temperature": 0.0, **settings_})  # type: ignore[arg-type]
    return llm.requests(llm.tokenize_prompt(text), params)[0]


def _finish(llm: Llama, limit: int = 2000) -> None:
    scheduler = llm.engine.schedulers[0]
    for _ in range(limit):
        if scheduler.idle:
            return
        scheduler.step()
    raise AssertionError("the scheduler does not come to an end")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.integers(0, len(TEXTS) - 1)),
            st.tuples(st.just("cancel"), st.integers(0, 30)),
            st.tuples(st.just("step"), st.integers(1, 3)),
        ),
        max_size=25,
    ),
    cache=st.booleans(),
)
def test_interleavings(llm: Llama, oracle: dict[str, list[int]], moves: list[tuple[str, int]], cache: bool) -> None:
    """Any interleaving of submit, cancel and step: every request ends once, with the tokens that it has alone, or a
    beginning of them when it was cancelled; nothing is left running."""
    scheduler = llm.engine.schedulers[0]
    requests: list[tuple[str, Request]] = []
    for move, k in moves:
        if move == "submit":
            request = _request(llm, TEXTS[k], prefix_cache=cache)
            requests.append((TEXTS[k], request))
            scheduler.submit(request)
        elif move == "cancel" and requests:
            scheduler.cancel(requests[k % len(requests)][1])
        else:
            for _ in range(k):
                scheduler.step()
    _finish(llm)
    for text, request in requests:
        assert request.done
        got = request.result()
        if got.finish_reason == "cancelled":
            assert got.token_ids == oracle[text][: len(got.token_ids)]
        else:
            assert got.token_ids == oracle[text]
    assert all(slot.state is State.IDLE for slot in scheduler.slots)
    if not cache:
        # the cache holds nothing of these requests
        held = [scheduler.memory.positions(i) for i in range(3)]
        assert all(slot.cached_tokens.size or held[slot.index] is None for slot in scheduler.slots)


def test_step_is_deterministic(llm: Llama) -> None:
    """The same requests in the same order give the same batches and the same tokens."""
    histories = []
    for _ in range(2):
        llm.clear_cache()
        requests = [_request(llm, t, temperature=0.9, seed=4) for t in TEXTS]
        for request in requests:
            llm.engine.schedulers[0].submit(request)
        sizes = []
        while not llm.engine.schedulers[0].idle:
            before = llm.metrics().batch_tokens
            llm.engine.schedulers[0].step()
            sizes.append(llm.metrics().batch_tokens - before)
        histories.append((sizes, [r.result().token_ids for r in requests]))
    assert histories[0] == histories[1]


def test_priority_then_arrival(llm: Llama) -> None:
    """With the slots taken, the waiting request of the highest priority is next, then the oldest."""
    scheduler = llm.engine.schedulers[0]
    first = [_request(llm, TEXTS[0]) for _ in range(3)]
    low, high, low2 = _request(llm, TEXTS[1]), _request(llm, TEXTS[1], priority=5), _request(llm, TEXTS[1])
    for request in (*first, low, high, low2):
        scheduler.submit(request)
    _finish(llm)
    assert high.progress.t_slot <= low.progress.t_slot <= low2.progress.t_slot


def test_long_prompt_does_not_stall_streams(smollm2: Path) -> None:
    """While a prompt of several micro-batches is computed, a running request gets a token in every step."""
    with Llama(smollm2, n_ctx=512, n_parallel=2, n_ubatch=64) as llm:
        scheduler = llm.engine.schedulers[0]
        running = _request(llm, TEXTS[0], max_tokens=40)
        scheduler.submit(running)
        scheduler.step()
        scheduler.submit(_request(llm, "word " * 90))
        for _ in range(5):
            before = len(running.output.token_ids)
            batch = llm.metrics().batch_tokens
            scheduler.step()
            assert len(running.output.token_ids) == before + 1
            assert llm.metrics().batch_tokens - batch <= 65
        _finish(llm)


def test_prompts_alone_fill_the_batch(smollm2: Path) -> None:
    """While nothing is generated, a batch of prompts holds n_batch tokens; their tokens are the same."""
    prompts = ["word " * 90, "Once upon a time " * 24]
    found = []
    for n_batch in (64, 256):
        with Llama(smollm2, n_ctx=512, n_parallel=2, n_ubatch=64, n_batch=n_batch) as llm:
            scheduler = llm.engine.schedulers[0]
            requests = [_request(llm, prompt, max_tokens=5) for prompt in prompts]
            for request in requests:
                scheduler.submit(request)
            scheduler.step()
            assert llm.metrics().batch_tokens == n_batch
            _finish(llm)
            found.append([r.output.token_ids for r in requests])
    assert found[0] == found[1]


def test_failed_batch_fails_its_requests_only(llm: Llama, oracle: dict[str, list[int]]) -> None:
    """A backend error ends the requests of that batch; one that waits is computed as if nothing had been."""
    scheduler = llm.engine.schedulers[0]
    doomed = [_request(llm, t) for t in TEXTS[:3]]
    waiting = _request(llm, TEXTS[3])
    for request in (*doomed, waiting):
        scheduler.submit(request)
    scheduler.step()
    decode = scheduler._decode

    def fail() -> None:
        raise BackendFailure("the backend could not compute the batch (made by this test)")

    scheduler._decode = fail  # type: ignore[method-assign]
    scheduler.step()
    scheduler._decode = decode  # type: ignore[method-assign]
    _finish(llm)
    for request in doomed:
        with pytest.raises(BackendFailure):
            request.result()
    assert waiting.result().token_ids == oracle[TEXTS[3]]


def test_interrupted_step_is_computed_again(llm: Llama, oracle: dict[str, list[int]]) -> None:
    """An exception at each point of a step (as Ctrl-C may come) loses no request and no token."""
    scheduler = llm.engine.schedulers[0]
    for name in ("_decode", "_accept", "_admit", "_choose"):
        requests = [_request(llm, t, prefix_cache=False) for t in TEXTS[:4]]
        for request in requests:
            scheduler.submit(request)
        scheduler.step()
        whole = getattr(scheduler, name)

        def interrupt(*args: object, whole: object = whole) -> object:
            whole(*args)  # type: ignore[operator]
            raise KeyboardInterrupt

        setattr(scheduler, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            for _ in range(40):
                scheduler.step()
        delattr(scheduler, name)
        _finish(llm)
        for text, request in zip(TEXTS, requests, strict=False):
            # computed again in one part instead of token by token: the first tokens must agree
            assert request.result().token_ids[:3] == oracle[text][:3], name
            assert len(request.result().token_ids) == LENGTH


def test_close_ends_what_runs(smollm2: Path) -> None:
    """Requests that a close finds running or waiting end with Cancelled."""
    llm = Llama(smollm2, n_ctx=256, n_parallel=1)
    scheduler = llm.engine.schedulers[0]
    requests = [_request(llm, t) for t in TEXTS[:2]]
    for request in requests:
        scheduler.submit(request)
    scheduler.step()
    llm.close()
    for request in requests:
        with pytest.raises(Cancelled):
            request.result()


def test_backend_sampling(smollm2: Path, llm: Llama, oracle: dict[str, list[int]]) -> None:
    """Chains attached to the backend choose the same greedy tokens; others still run on the CPU; chains are not
    attached twice, which would end the process."""
    with Llama(smollm2, n_ctx=256, n_parallel=2, backend_sampling=True) as other:
        for _ in range(2):
            got = other.generate(TEXTS, max_tokens=LENGTH, temperature=0)
            assert [r.token_ids for r in got] == [oracle[t] for t in TEXTS]
        one = other.generate(TEXTS[0], max_tokens=LENGTH, seed=5)
        assert one.token_ids == other.generate(TEXTS[0], max_tokens=LENGTH, seed=5).token_ids
        assert other.generate(TEXTS[0], max_tokens=2, logprobs=1, typical_p=0.9).logprobs


def test_prefix_lookup_is_of_tokens() -> None:
    """common_prefix counts equal tokens from the start."""
    from llcuda_ffi.engine.prefix_cache import common_prefix

    a = np.array([1, 2, 3, 4], np.int32)
    assert common_prefix(a, a) == 4
    assert common_prefix(a, a[:2]) == 2
    assert common_prefix(a, np.array([1, 2, 9], np.int32)) == 2
    assert common_prefix(a, np.array([7], np.int32)) == 0
    assert common_prefix(a, a[:0]) == 0


def test_request_added_during_a_step_waits_for_the_next(llm: Llama, oracle: dict[str, list[int]]) -> None:
    """A request that another thread submits after the queue was read is admitted in the next step, not half in this."""
    scheduler = llm.engine.schedulers[0]
    first, second = _request(llm, TEXTS[0]), _request(llm, TEXTS[1])
    scheduler.submit(first)
    collect = scheduler._requests.collect

    def collect_then_submit() -> None:
        collect()
        scheduler._requests.collect = collect  # type: ignore[method-assign]
        scheduler.submit(second)

    scheduler._requests.collect = collect_then_submit  # type: ignore[method-assign]
    _finish(llm)
    assert first.result().token_ids == oracle[TEXTS[0]]
    assert second.result().token_ids == oracle[TEXTS[1]]


def test_cancel_of_what_was_just_added(llm: Llama) -> None:
    """A request submitted and cancelled between the reading of the queue and the sweep is not forgotten."""
    scheduler = llm.engine.schedulers[0]
    running, added = _request(llm, TEXTS[0]), _request(llm, TEXTS[1])
    for slot_filler in (running, _request(llm, TEXTS[2]), _request(llm, TEXTS[3])):
        scheduler.submit(slot_filler)
    scheduler.step()
    collect = scheduler._requests.collect

    def collect_then_cancel() -> None:
        collect()
        scheduler._requests.collect = collect  # type: ignore[method-assign]
        scheduler.submit(added)
        scheduler.cancel(added)

    scheduler._requests.collect = collect_then_cancel  # type: ignore[method-assign]
    _finish(llm)
    assert running.result().finish_reason == "length"
    assert (added.result().finish_reason, added.result().token_ids) == ("cancelled", [])
