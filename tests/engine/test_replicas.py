"""Several contexts of one model: the same tokens, each request in one of them, nothing lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda_ffi import AsyncLlama, Llama, SamplingParams
from llcuda_ffi.engine.metrics import Metrics, percentiles
from llcuda_ffi.errors import Cancelled, ClosedError, ConcurrentUseError, EngineFailure, InvalidRequest

PROMPTS = [f"Story {i}. Once upon a time there was" for i in range(10)]
LONG = "The quick brown fox jumps over the lazy dog, and then it " * 4
SETTINGS = {"n_ctx": 256, "n_parallel": 4}


@pytest.fixture(scope="module")
def two(trained: Path) -> Iterator[Llama]:
    with Llama(trained, n_contexts=2, **SETTINGS) as llm:
        yield llm


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "llcuda_ffi-engine"]


def _busy(llm: Llama) -> list[int]:
    return [scheduler.metrics.requests for scheduler in llm.engine.schedulers]


def test_the_same_tokens(trained: Path, two: Llama) -> None:
    """What one context gives, seeds, several completions and constraints included; both have work."""
    assert [context.n_seq_max for context in two.contexts] == [2, 2]
    assert [context.n_ctx for context in two.contexts] == [512, 512]
    each = [SamplingParams(max_tokens=8, seed=i, n=1 + (i == 3), prefix_cache=False) for i in range(9)]
    each.append(SamplingParams(max_tokens=8, temperature=0, grammar="root ::= [a-z ]+", prefix_cache=False))

    def flat(results: list[object]) -> list[object]:
        return [[c.token_ids for c in (r if isinstance(r, list) else [r])] for r in results]  # type: ignore[attr-defined]

    with Llama(two.model, **SETTINGS) as one:
        expected = flat(one.generate(PROMPTS, each))
        assert len(_threads()) == 2  # of the two contexts; a single one has none
    before = _busy(two)
    assert flat(two.generate(PROMPTS, each)) == expected
    after = _busy(two)
    assert all(y > x for x, y in zip(before, after, strict=True))
    metrics = two.metrics()
    assert metrics.requests == sum(after)
    assert metrics.kv_cells == 4 * 256
    assert metrics.running == metrics.queued == 0


def test_metrics_of_all_replicas() -> None:
    """Counters add up; the percentiles are over the last requests of every replica."""
    parts = [Metrics(), Metrics()]
    for value, part in enumerate(parts, 1):
        part.requests = 10 * value
        part.ttft.extend([float(value)] * 2000)
    whole = Metrics.merged(parts)
    assert whole.requests == 30
    assert whole.began == parts[0].began
    assert percentiles(whole.ttft).mean == 1.5
    assert [len(part.ttft) for part in parts] == [1024, 1024]


def test_streams_from_many_threads(two: Llama) -> None:
    """Each stream has its own text, whichever lane it is in; one that is left is cancelled."""
    expected = [two.generate(p, max_tokens=10, temperature=0).text for p in PROMPTS]
    found: dict[int, str] = {}

    def read(i: int) -> None:
        found[i] = "".join(chunk.text for chunk in two.stream(PROMPTS[i], max_tokens=10, temperature=0))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for _ in two.stream(LONG, max_tokens=200):
        break
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(PROMPTS))] == expected


def test_a_prefix_is_found_in_its_replica(two: Llama) -> None:
    """A request goes where the beginning of its prompt is kept."""
    two.clear_cache()
    assert two.metrics().kv_used == 0
    two.generate("Something else entirely", max_tokens=2, temperature=0)
    two.generate(LONG, max_tokens=2, temperature=0)
    for _ in range(3):
        again = two.generate(LONG + "runs", max_tokens=2, temperature=0)
        assert again.usage.cached_tokens > 40


def test_replicas_are_filled_evenly(two: Llama) -> None:
    """A beginning of few tokens that is kept in one context does not draw every request there."""
    two.generate(PROMPTS[0], max_tokens=2)
    requests = [
        two.requests(two.tokenize_prompt(p), SamplingParams(max_tokens=30, ignore_eos=True))[0] for p in PROMPTS
    ]
    two.engine.submit(*requests)
    assert sorted(r.place.replica for r in requests) == [0] * 5 + [1] * 5
    for request in requests:
        two.engine.wait(request)
    assert {len(r.output.token_ids) for r in requests} == {30}


def test_state_of_all_replicas(two: Llama, tmp_path: Path) -> None:
    """Saved prefixes come from every replica and go to any."""
    two.clear_cache()
    texts = [f"{i} {LONG}" for i in range(4)]
    two.generate(texts, max_tokens=2, temperature=0)
    assert all(any(len(slot.cached_tokens) for slot in scheduler.slots) for scheduler in two.engine.schedulers)
    saved = two.save_state(tmp_path / "state")
    two.clear_cache()
    assert two.load_state(tmp_path / "state") == saved == two.metrics().kv_used
    for text in texts:
        assert two.generate(text, max_tokens=2, temperature=0).usage.cached_tokens > 40


def test_failure(trained: Path, two: Llama, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception in one context ends every request, and is what every later call says."""
    llm = Llama(two.model, n_contexts=2, **SETTINGS)

    def fail(*_: object) -> None:
        raise RuntimeError("made by this test")

    llm.engine.schedulers[1].selection.ahead = fail  # type: ignore[method-assign]
    requests = [
        llm.requests(llm.tokenize_prompt(p), SamplingParams(max_tokens=150, ignore_eos=True))[0] for p in PROMPTS
    ]
    llm.engine.submit(*requests)
    for request in requests:
        with pytest.raises(EngineFailure, match="made by this test"):
            llm.engine.wait(request)
            request.result()
    assert isinstance(llm.failure, RuntimeError)
    assert llm.metrics().failure == "RuntimeError: made by this test"
    end = time.monotonic() + 60  # each context's thread ends its own requests
    while llm.metrics().failed < len(requests) and time.monotonic() < end:
        time.sleep(0.01)
    assert llm.metrics().failed == len(requests)
    assert llm.metrics().running == llm.metrics().queued == 0
    with pytest.raises(EngineFailure) as caught:
        llm.generate("text")
    assert caught.value.__cause__ is llm.failure
    with pytest.raises(EngineFailure):
        llm.clear_cache()
    llm.close()
    with pytest.raises(ClosedError):
        llm.generate("text")
    assert "made by this test" in caplog.text


def test_close(trained: Path) -> None:
    """Refused while another thread waits for a request; a stream that nobody waits for ends with Cancelled."""
    before = _threads()
    llm = Llama(trained, n_contexts=2, **SETTINGS)
    stream = llm.stream(LONG, max_tokens=150, ignore_eos=True)
    next(stream)
    thread = threading.Thread(target=llm.generate, args=(LONG,), kwargs={"max_tokens": 20, "ignore_eos": True})
    thread.start()
    while not llm.engine.in_use:
        time.sleep(0.001)
    with pytest.raises(ConcurrentUseError, match="generating"):
        llm.close()
    thread.join()
    llm.close()
    llm.close()
    with pytest.raises(Cancelled):
        list(stream)
    assert llm.closed
    assert _threads() == before
    with pytest.raises(ClosedError):
        llm.generate("text")


def test_without_close(trained: Path, two: Llama) -> None:
    """A Llama that is dropped ends its threads."""
    before = _threads()
    llm = Llama(two.model, n_contexts=2, **SETTINGS)
    llm.generate(PROMPTS[:2], max_tokens=2)
    assert len(_threads()) == len(before) + 2
    del llm
    gc.collect()
    assert _threads() == before


def test_async(two: Llama) -> None:
    """AsyncLlama uses the same threads; closing it ends what runs."""

    async def main() -> None:
        llm = AsyncLlama(two.model, n_contexts=2, **SETTINGS)
        await llm.generate(PROMPTS[0], max_tokens=1)
        assert len(_threads()) == len(before) + 2
        texts = await asyncio.gather(*(llm.generate(p, max_tokens=6, temperature=0) for p in PROMPTS))
        assert [t.token_ids for t in texts] == expected
        task = asyncio.create_task(llm.generate(LONG, max_tokens=180, ignore_eos=True))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(llm.close)
        with pytest.raises((Cancelled, ClosedError)):
            await task

    expected = [c.token_ids for c in two.generate(PROMPTS, max_tokens=6, temperature=0)]
    before = _threads()
    asyncio.run(main())
    assert _threads() == before


def test_settings(trained: Path, two: Llama) -> None:
    """Numbers that cannot be are refused."""
    for wrong in (0, 3, 8, 2.5):
        with pytest.raises(InvalidRequest, match="n_contexts"):
            Llama(two.model, n_contexts=wrong, **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="kv_cells=300 in n_contexts=2"):
        Llama(two.model, n_contexts=2, kv_cells=300, **SETTINGS)  # type: ignore[arg-type]
    with Llama(two.model, n_ctx=64, n_parallel=32) as llm:
        assert len(llm.contexts) == 1  # on a CPU
    with Llama(two.model, n_contexts=2, kv_cells=1024, draft="ngram", **SETTINGS) as llm:
        assert llm.metrics().kv_cells == 1024
        text = llm.generate("one two three one two three one two", max_tokens=8, temperature=0).text
        assert text == two.generate("one two three one two three one two", max_tokens=8, temperature=0).text
        deadline = time.monotonic() + 60
        assert llm.generate(LONG, timeout=0.01).finish_reason == "cancelled"
        assert time.monotonic() < deadline
