"""Objects that own native memory: any order of closing, any thread, any number, and nothing leaks."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from llcuda_ffi import Batch, Context, Model, SamplerChain
from llcuda_ffi.errors import Cancelled, ClosedError, ConcurrentUseError

from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama

RSS = """
import gc, sys
def rss():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that loads in milliseconds."""
    path = tmp_path_factory.mktemp("lifetimes") / "tiny.gguf"
    make_tiny_llama(path)
    return path


@pytest.fixture
def model(tiny: Path) -> Iterator[Model]:
    with Model.load(tiny) as model:
        yield model


def compute(context: Context, n: int = 4) -> None:
    batch = Batch(n)
    context.memory.clear()  # type: ignore[union-attr]
    batch.extend(range(n))
    context.decode(batch)


def test_a_model_closes_what_was_made_from_it(tiny: Path) -> None:
    """model.close() closes contexts and samplers; then every use of any of them raises ClosedError."""
    model = Model.load(tiny)
    context, chain, vocab = Context(model, n_ctx=64), SamplerChain(model).greedy(), model.vocab
    memory = context.memory
    assert memory is not None
    compute(context)
    assert chain.sample(context) >= 0
    model.close()
    assert (model.closed, context.closed, chain.closed) == (True, True, True)
    batch = Batch(1)
    batch.add(1, 0, output=True)
    uses = [
        lambda: model.n_params,
        lambda: model.description,
        lambda: Context(model),
        lambda: SamplerChain(model),
        lambda: vocab.tokenize("x"),
        lambda: vocab.is_control(1),
        lambda: context.decode(batch),
        context.logits,
        lambda: context.set_threads(1),
        memory.clear,
        lambda: memory.remove(0),
        lambda: memory.positions(0),
        lambda: chain.accept(1),
        chain.reset,
        chain.clone,
        lambda: chain.top_k(1),
    ]
    for use in uses:
        with pytest.raises(ClosedError):
            use()
    for handle in (model, context, chain):
        handle.close()  # the second time: nothing happens
        assert "closed" in repr(handle)


def test_a_child_closes_alone(model: Model) -> None:
    """Closing a context leaves its model, and the model's other contexts, as they were."""
    with Context(model, n_ctx=64) as first, Context(model, n_ctx=64) as second:
        first.close()
        with pytest.raises(ClosedError):
            compute(first)
        compute(second)
        assert second.logits().shape == (model.vocab.n_tokens,)
    assert second.closed
    assert not model.closed


def test_dropped_in_any_order(tiny: Path) -> None:
    """References to a model, a context and a chain may go in each of the 6 orders; the last one still works."""
    for order in permutations(range(3)):
        model = Model.load(tiny)
        handles = [model, Context(model, n_ctx=64), SamplerChain(model).greedy()]
        resources = [handle._resource for handle in handles]
        del model
        for i in order:
            last = handles[i]
            if isinstance(last, Context):
                compute(last)  # its model was perhaps dropped before it
            handles[i] = None  # type: ignore[call-overload]
            del last
        gc.collect()
        assert all(resource.pointer is None for resource in resources)


def test_a_cycle_is_collected(tiny: Path) -> None:
    """Objects that refer to each other in a cycle are freed by the garbage collector, in whatever order it likes."""
    resources = []
    for _ in range(5):
        model = Model.load(tiny)
        context, chain = Context(model, n_ctx=64), SamplerChain(model).greedy()
        model.own = [context, chain]  # type: ignore[attr-defined]
        context.chain, chain.context = chain, context  # type: ignore[attr-defined]
        resources += [handle._resource for handle in (model, context, chain)]
    del model, context, chain
    gc.collect()
    assert all(resource.pointer is None for resource in resources)


def test_one_thread_at_a_time(smollm2: Path) -> None:
    """While a context computes, a second thread gets ConcurrentUseError from every use and from close; then the
    context goes on as before."""
    with Model.load(smollm2) as model, Context(model, n_ctx=512, n_batch=512, n_threads=1) as context:
        want = _busy(context)
        assert want is None  # it was not disturbed
        compute(context)
        assert context.logits().shape == (model.vocab.n_tokens,)


def _busy(context: Context) -> BaseException | None:
    """Use a context that another thread computes with; returns what the computing thread raised."""
    batch, other = Batch(300), Batch(1)
    batch.extend([100 + i % 500 for i in range(300)])
    other.add(1, 0)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            context.decode(batch)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not context._resource.lock.locked() and thread.is_alive():
        pass
    memory = context.memory
    assert memory is not None
    for use in (lambda: context.decode(other), context.logits, memory.clear, context.close, context.model.close):
        assert thread.is_alive()
        with pytest.raises(ConcurrentUseError):
            use()
    thread.join()
    return raised[0] if raised else None


def test_abort(smollm2: Path) -> None:
    """abort() from another thread ends a decode with Cancelled; the context then computes what a fresh one does."""
    with Model.load(smollm2) as model, Context(model, n_ctx=2048, n_batch=2048, n_threads=1) as context:
        batch = Batch(2000)
        batch.extend([100 + i % 500 for i in range(2000)])
        compute(context)
        want = context.logits()
        assert context.memory is not None
        for _ in range(2):
            context.memory.clear()
            stop = threading.Event()

            def aborting(stop: threading.Event = stop) -> None:
                while not stop.wait(0.05):
                    if context._resource.lock.locked():
                        context.abort()
                        return

            thread = threading.Thread(target=aborting)
            thread.start()
            try:
                with pytest.raises(Cancelled):
                    context.decode(batch)
            finally:
                stop.set()
                thread.join()
            compute(context)
            assert (context.logits() == want).all()


def test_progress_that_stops(tiny: Path) -> None:
    """A progress callback that returns False ends the load with Cancelled; what it raises comes out as it is; both
    leave nothing behind, and one that returns None hears the load to its end."""
    with pytest.raises(Cancelled, match="progress"):
        Model.load(tiny, progress=lambda share: False)

    def fail(share: float) -> None:
        raise ZeroDivisionError(f"at {share}")

    with pytest.raises(ZeroDivisionError, match="at 0"):
        Model.load(tiny, progress=fail)
    shares: list[float] = []
    Model.load(tiny, progress=shares.append).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_contexts_dropped_without_close(tiny: Path) -> None:
    """200 contexts that nobody closes take no more memory than a few."""
    code = (
        RSS
        + """
from llcuda_ffi import Context, Model
model = Model.load(sys.argv[1])
def drop(n):
    for _ in range(n):
        Context(model, n_ctx=512, n_seq_max=4)
drop(40)
before = rss()
drop(160)
print(rss() - before)
"""
    )
    assert int(run_child(code, tiny)) < 24 << 20  # one context's buffers are some 3 MiB


def test_open_generate_close(tiny: Path) -> None:
    """A Llama opened, used and closed 100 times leaves the process as large as it was."""
    code = (
        RSS
        + """
from llcuda_ffi import Llama
def use(n):
    for _ in range(n):
        with Llama(sys.argv[1], n_ctx=64, n_parallel=1, n_threads=1) as llm:
            assert len(llm.generate("one two", max_tokens=4, temperature=0, ignore_eos=True).token_ids) == 4
use(20)
before = rss()
use(100)
print(rss() - before)
"""
    )
    assert int(run_child(code, tiny, timeout=120)) < 12 << 20
