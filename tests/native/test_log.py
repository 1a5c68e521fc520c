"""libllama's log belongs to the call that made it, and an exception in a callback is raised after that call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda_ffi import Context, Model
from llcuda_ffi.errors import ModelError
from llcuda_ffi.native import log

from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "tiny.gguf"
    make_tiny_llama(path)
    return path


class Oops(Exception):
    """What a handler raises."""


@pytest.fixture
def raising() -> Iterator[list[str]]:
    """A log handler that raises Oops for the lines that hold one of the words in the list."""
    words: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if any(word in record.getMessage() for word in words):
                raise Oops(record.getMessage())

    handler, before = Handler(), log.logger.level
    log.logger.addHandler(handler)
    log.logger.setLevel(logging.DEBUG)
    yield words
    log.logger.removeHandler(handler)
    log.logger.setLevel(before)


def test_two_loads_at_once(tiny: Path) -> None:
    """Two threads that load models and make contexts 20 times: each listener hears what it hears alone."""

    def load(lines: list[list[str]]) -> None:
        for _ in range(20):
            with log.listen() as heard, Model.load(tiny) as model, Context(model, n_ctx=64):
                pass
            lines.append([line for line in heard.lines() if "buffer size" in line or "Flash" in line])

    alone: list[list[str]] = []
    load(alone)
    assert alone[0]
    together: list[list[list[str]]] = [[], [], []]
    threads = [threading.Thread(target=load, args=(lines,)) for lines in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(lines == alone for lines in together)


def test_lines_of_another_call_are_no_reason(tmp_path: Path, tiny: Path) -> None:
    """An error's message carries the lines of its own call, not those of the failed call before it."""
    bad = tmp_path / "bad.gguf"
    raw = tiny.read_bytes()
    bad.write_bytes(raw.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    for _ in range(2):
        with pytest.raises(ModelError) as error:
            Model.load(bad)
    assert str(error.value).count("attn_q") <= 2
    with log.listen() as heard, Model.load(tiny):
        pass
    assert "attn_x" not in "".join(heard.lines())


@pytest.mark.parametrize("word", ["print_info", "load_tensors", "llama_context"])
def test_log_handler_that_raises(tiny: Path, raising: list[str], word: str) -> None:
    """It comes out of the load, or of the context that was being made, and both work afterwards."""
    raising.append(word)
    with pytest.raises(Oops, match=word):
        model = Model.load(tiny)
        Context(model, n_ctx=64)
    raising.clear()
    with Model.load(tiny) as model, Context(model, n_ctx=64):
        pass


def test_the_first_exception_counts() -> None:
    """Of several exceptions in callbacks the first is raised, also instead of one that the call's failure raises."""
    with pytest.raises(Oops, match="first"), log.listen():
        for text in ("first", "second"):
            error = Oops(text)
            log.keep(Oops, error, None)
        raise ValueError


def test_signals_during_a_load(smollm2: Path) -> None:
    """Whenever a signal handler raises during 20 loads: the load ends with that exception, each time, nothing is
    printed and the model's memory is given back."""
    out = run_child(
        """
        import gc, signal, sys
        from llcuda_ffi import Model
        from llcuda_ffi.native import log

        class Stop(Exception):
            pass

        fired = raised = 0

        def handler(*_):
            global fired
            fired += 1
            raise Stop

        log.logger.setLevel("DEBUG")
        model = Model.load(sys.argv[1])
        model.close()
        signal.signal(signal.SIGALRM, handler)
        for i in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.004 * i)
            try:
                model = Model.load(sys.argv[1])
                signal.setitimer(signal.ITIMER_REAL, 0)
                model.close()
            except Stop:
                raised += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        with open("/proc/self/maps") as maps:
            print(fired - raised, raised > 4, sum(sys.argv[1].rsplit("/", 1)[-1] in line for line in maps))
        """,
        smollm2,
    )
    assert out.split() == ["0", "True", "0"]  # none was lost, some came, no model is mapped
