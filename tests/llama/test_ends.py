"""How a Llama ends, or does not begin: Ctrl-C, close, files that are no models."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi import Llama
from llcuda_ffi.errors import ClosedError, InvalidModelFile, LlcudaError, ModelNotFound

STORY = "Once upon a time"


def test_interrupt_leaves_a_usable_llama(smollm2: Path) -> None:
    """Ctrl-C in the middle of a generation: KeyboardInterrupt, then the same Llama answers as before."""
    code = f"""
import os, signal, sys, threading
from llcuda_ffi import Llama
llm = Llama({str(smollm2)!r}, n_ctx=512, n_parallel=2)
want = llm.generate("Once upon a time", max_tokens=8, temperature=0).text
for wait in (0.05, 0.11, 0.23, 0.31):
    timer = threading.Timer(wait, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        llm.generate(["Tell me more"] * 4, max_tokens=400, ignore_eos=True)
        sys.exit("not interrupted")
    except KeyboardInterrupt:
        pass
    timer.join()
    assert llm.generate("Once upon a time", max_tokens=8, temperature=0).text == want
m = llm.metrics()
assert m.running == 0 and m.queued == 0, m
llm.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_close(smollm2: Path) -> None:
    """After close every use raises ClosedError; closing twice is fine; streams end."""
    llm = Llama(smollm2, n_ctx=256, n_parallel=1)
    stream = llm.stream(STORY, max_tokens=50)
    next(stream)
    llm.close()
    llm.close()
    assert llm.closed
    with pytest.raises(ClosedError):
        llm.generate(STORY)
    with pytest.raises(LlcudaError):
        list(stream)
    assert "closed" in repr(llm)


def test_bad_model_files(tmp_path: Path) -> None:
    """No file, a folder, no GGUF: one exception each."""
    with pytest.raises(ModelNotFound):
        Llama(tmp_path / "none.gguf")
    with pytest.raises(ModelNotFound):
        Llama(tmp_path)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model at all" * 10)
    with pytest.raises(InvalidModelFile):
        Llama(bad)


def test_truncated_model(smollm2: Path, tmp_path: Path) -> None:
    """A model whose end is missing is refused before libllama sees it."""
    cut = tmp_path / "cut.gguf"
    with smollm2.open("rb") as source:
        cut.write_bytes(source.read(5_000_000))
    with pytest.raises(InvalidModelFile):
        Llama(cut)


def test_signal_module_is_untouched() -> None:
    """Importing and using the package installs no signal handler."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
