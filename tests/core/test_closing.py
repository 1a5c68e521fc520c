"""Closing while threads are inside: a call ends with its result or an exception, nothing is freed under it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda_ffi import Context, Embedder, Model
from llcuda_ffi.errors import ClosedError, ConcurrentUseError

from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama

ROOT = Path(__file__).resolve().parents[2]
LONG = "the quick brown fox jumps over the lazy dog " * 20_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("closing") / "tiny.gguf"
    make_tiny_llama(path)
    return path


@pytest.fixture
def model(tiny: Path) -> Iterator[Model]:
    with Model.load(tiny) as model:
        yield model


THOUSAND = [pytest.param(first, 250, marks=[pytest.mark.soak, pytest.mark.timeout(0)]) for first in range(0, 1000, 250)]


@pytest.mark.parametrize(("first", "rounds"), [(0, 120), *THOUSAND])
def test_any_call_while_another_thread_closes(tiny: Path, first: int, rounds: int) -> None:
    """Rounds of random calls and closes from 8 threads, in a child process: no signal, no hang, no exception that is
    not ours. A thousand of them: -m soak."""
    command = [sys.executable, "-m", "tests.support.closing_worker", str(tiny), str(first), str(rounds)]
    limit = 240 if rounds < 250 else 2400
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"survived {rounds}" in done.stdout


def _inside(model: Model) -> bool:
    """Whether some thread is in a call of `model`."""
    for lock in list(model._resource.users.values()):
        if not lock.acquire(blocking=False):
            return True
        lock.release()
    return False


def test_close_waits_for_a_text_that_is_tokenized(tiny: Path) -> None:
    """Model.close() while a long text is tokenized: the tokens are right, and the next text raises ClosedError."""
    model = Model.load(tiny)
    want = len(model.vocab.tokenize(LONG))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(len(model.vocab.tokenize(LONG))))
    thread.start()
    while not _inside(model):
        assert thread.is_alive()
    model.close()
    thread.join()
    assert found == [want]
    with pytest.raises(ClosedError):
        model.vocab.tokenize("x")


def test_close_of_an_embedder_while_it_encodes(model: Model) -> None:
    """Each encode of four threads gives vectors or raises ClosedError; afterwards the model closes."""
    embedder = Embedder(model, n_contexts=2, n_threads=1)
    want = embedder.encode("the quick brown fox")
    begun, wrong = threading.Barrier(5), []

    def work() -> None:
        begun.wait()
        try:
            for _ in range(1000):
                if abs(embedder.encode("the quick brown fox") - want).max() > 1e-4:
                    wrong.append("another vector")
        except ClosedError:
            return
        wrong.append("never closed")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    embedder.encode(["the lazy dog"] * 8)
    embedder.close()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_close_from_inside_a_call(model: Model) -> None:
    """A signal handler that closes what its own thread is using gets ConcurrentUseError; nothing is changed."""
    with Context(model, n_ctx=64) as context:
        for held in (model.shared(), context.exclusive()):
            with held, pytest.raises(ConcurrentUseError):
                model.close()
            assert model.n_params
            assert context.n_threads


def test_close_that_is_interrupted(model: Model) -> None:
    """An exception while close() still waits leaves everything usable, and a second close() works."""
    context = Context(model, n_ctx=64)
    calls: list[int] = []

    def unlink() -> None:
        calls.append(1)
        with pytest.raises(ConcurrentUseError, match="being closed"):
            assert model.n_params
        if len(calls) == 1:
            raise KeyboardInterrupt

    context._resource.unlink = unlink
    with pytest.raises(KeyboardInterrupt):
        model.close()
    assert (model.closed, context.closed) == (False, False)
    assert context.n_threads
    model.close()
    assert (model.closed, context.closed) == (True, True)


def test_ctrl_c_while_a_text_is_tokenized(tiny: Path) -> None:
    """Ctrl-C leaves the caller at once, the tokenizer's thread is still in C: close() waits for it."""
    out = run_child(
        """
        import os, signal, sys, threading
        from llcuda_ffi import Model

        model = Model.load(sys.argv[1])
        text = "the quick brown fox jumps over the lazy dog " * 20_000
        users = model._resource.users

        def interrupt():
            while all(ident == threading.main_thread().ident for ident in list(users)):
                pass
            os.kill(os.getpid(), signal.SIGINT)

        try:
            while True:  # on a busy machine the text may be done before the signal comes
                users.clear()
                thread = threading.Thread(target=interrupt)
                thread.start()
                model.vocab.tokenize(text)
                thread.join()
                text *= 2
        except KeyboardInterrupt:
            model.close()
            print("closed", model.closed)
        """,
        tiny,
    )
    assert out == "closed True\n"


def test_a_stream_that_outlives_its_llama(tiny: Path) -> None:
    """A process that ends with a stream half read, and nothing closed, says nothing."""
    code = """
        import sys
        from llcuda_ffi import Llama
        stream = Llama(sys.argv[1], n_ctx=64).stream("the quick", max_tokens=32, ignore_eos=True)
        print(next(stream).index)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tiny)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
