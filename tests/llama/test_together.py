"""What one caller does while others run: shifting, saving, clearing, closing; and what is each prompt's own outcome."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda_ffi import Completion, Llama, Model
from llcuda_ffi.errors import ConcurrentUseError, ContextOverflow, InvalidRequest
from tests.support.child_process import run_child
from tests.support.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    make_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model.load(path) as model:
        yield model


class Load:
    """Two threads that generate without end."""

    def __init__(self, llm: Llama) -> None:
        self._llm, self._over = llm, threading.Event()
        self.done: list[Completion] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._over.is_set():
            self.done.append(self._llm.generate("on and on", max_tokens=40, ignore_eos=True))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        while not self.done:
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_under_load(model: Model, tmp_path: Path) -> None:
    """Shifting requests are queued like any other; clearing, saving and loading run between two steps; closing is
    refused, and works afterwards. The stream is for the closing: the two threads may both be between two requests."""
    llm = Llama(model, n_ctx=64, n_parallel=3)
    with Load(llm) as load:
        for _ in range(10):
            done = llm.generate("a", max_tokens=100, overflow="shift", ignore_eos=True)
            assert len(done.token_ids) == 100
            llm.clear_cache()
            llm.generate("something to keep", max_tokens=2)
            assert llm.save_state(tmp_path / "state") > 0
            assert llm.load_state(tmp_path / "state") > 0
            assert llm.metrics().failure is None
        before = len(load.done)
        held = llm.stream("something long", max_tokens=1000, overflow="shift", ignore_eos=True)
        next(held)
        with pytest.raises(ConcurrentUseError):
            llm.close()
        held.close()  # type: ignore[attr-defined]
        while len(load.done) < before + 2:
            pass
    llm.close()
    assert llm.closed


def test_a_stream_that_was_closed_is_over(model: Model, tmp_path: Path) -> None:
    """Its slot is idle at once, and its tokens can be saved and cleared."""
    with Llama(model, n_ctx=64, n_parallel=1) as llm:
        stream = llm.stream("a b c d e f", max_tokens=40, ignore_eos=True)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert llm.metrics().running == 0
        assert llm.save_state(tmp_path / "state") > 5
        llm.clear_cache()
        assert llm.metrics().kv_used == 0


def test_each_prompt_has_its_own_outcome(model: Model) -> None:
    """With `return_exceptions` a prompt that does not fit, or is none, has its exception; the others their results."""
    with Llama(model, n_ctx=64, n_parallel=2) as llm:
        prompts = ["a", "b " * 100, "c", ""]
        found = llm.generate(prompts, max_tokens=3, temperature=0, return_exceptions=True)
        assert [type(one) for one in found] == [Completion, ContextOverflow, Completion, InvalidRequest]
        assert found[2].token_ids == llm.generate("c", max_tokens=3, temperature=0).token_ids
        with pytest.raises(ContextOverflow, match="prompt 1"):
            llm.generate(prompts, max_tokens=3)
    with Llama(model, n_ctx=64, n_parallel=2, kv_cells=64) as llm:
        found = llm.generate(["a", "b"], max_tokens=40, ignore_eos=True, return_exceptions=True)
        assert [len(one.token_ids) for one in found] == [40, 40]


ROUNDS = """
import random, sys, threading
from llcuda_ffi import Llama, Model
from llcuda_ffi.errors import LlcudaError
model = Model.load(sys.argv[1])
for i in range(int(sys.argv[2])):
    llm = Llama(model, n_ctx=64, n_parallel=3, n_contexts=1 if i % 2 else 3)
    start = threading.Barrier(8)
    def work(seed):
        choose = random.Random(seed)
        start.wait()
        for _ in range(6):
            try:
                what = choose.randrange(6)
                if what == 0:
                    llm.generate("a b c", max_tokens=5)
                elif what == 1:
                    for _ in llm.stream("a", max_tokens=9):
                        break
                elif what == 2:
                    llm.vocab.tokenize("one two three " * 50)
                elif what == 3:
                    llm.clear_cache()
                elif what == 4:
                    llm.metrics(), llm.context.n_threads
                elif choose.random() < 0.3:
                    llm.close()
            except LlcudaError:
                pass
    threads = [threading.Thread(target=work, args=(100 * i + k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    llm.close()
    assert llm.closed
print("ok")
"""


def test_rounds_from_eight_threads(path: Path) -> None:
    """Generating, leaving streams, tokenizing, clearing, asking and closing at once: no signal, no hang, only our
    exceptions."""
    assert run_child(ROUNDS, path, 40, timeout=240) == "ok\n"


INTERRUPTED = """
import sys
from pathlib import Path
from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.cli.prompts import run_file
folder = Path(sys.argv[2])
lines = '{"prompt": "a", "max_tokens": 400, "ignore_eos": true}\\n' * 200
(folder / "in.jsonl").write_text(lines)
import signal, threading
def interrupt():
    while not (folder / "out.jsonl").exists() or not (folder / "out.jsonl").stat().st_size:
        pass
    signal.raise_signal(signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    with Llama(sys.argv[1], n_ctx=512, n_parallel=4, n_contexts=2) as llm:
        run_file(llm, folder / "in.jsonl", folder / "out.jsonl", SamplingParams())
except KeyboardInterrupt:
    print("interrupted", llm.closed, llm.context.closed)
"""


def test_ctrl_c_in_a_file_of_prompts(path: Path, tmp_path: Path) -> None:
    """With several contexts too: the run ends with KeyboardInterrupt, and everything is freed."""
    assert run_child(INTERRUPTED, path, tmp_path) == "interrupted True True\n"
