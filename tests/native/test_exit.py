"""How a process ends that did not close anything: with its own exit code, and nothing said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# each defines work(), which sets `started` while or before it computes and never ends by itself
_WORK = {
    "stream": """
from llcuda_ffi import Llama
llm = Llama({llm!r}, n_ctx=512, n_parallel=1)
def work():
    while True:
        for chunk in llm.stream("x", max_tokens=400, ignore_eos=True):
            started.set()
""",
    "prompt": """
from llcuda_ffi import Llama
llm = Llama({llm!r}, n_ctx=2048, n_parallel=1, prefix_cache=False)
def work():
    started.set()
    while True:
        llm.generate("a b c d e f g h " * 200, max_tokens=1)
""",
    "async": """
import asyncio
from llcuda_ffi import AsyncLlama
llm = AsyncLlama({llm!r}, n_ctx=512, n_parallel=4)
async def one():
    async for chunk in llm.stream("x", max_tokens=400, ignore_eos=True):
        started.set()
async def several():
    await asyncio.gather(*(one() for _ in range(4)))
def work():
    asyncio.run(several())
""",
    "lanes": """
from llcuda_ffi import Llama
llm = Llama({llm!r}, n_ctx=512, n_parallel=4, n_contexts=2)
def work():
    started.set()
    while True:
        llm.generate(["x"] * 8, max_tokens=400, ignore_eos=True)
""",
    "load": """
from llcuda_ffi import Model
from llcuda_ffi.enums import LoadMode
def work():
    started.set()
    while True:
        Model.load({llm!r}, load_mode=LoadMode.NONE).close()
""",
    "embed": """
from llcuda_ffi import Embedder
embedder = Embedder({minilm!r})
def work():
    started.set()
    while True:
        embedder.encode(["some words to embed " * 8] * 64)
""",
}
_RUN = """
import threading, time
started = threading.Event()
{work}
threading.Thread(target=work, daemon=True).start()
started.wait()
time.sleep({pause})
raise SystemExit(5)
"""


@pytest.mark.parametrize("pause", [0, 0.02, 0.05])
@pytest.mark.parametrize("what", list(_WORK))
def test_exit_is_silent(smollm2: Path, minilm: Path, what: str, pause: float) -> None:
    """A process that ends while a daemon thread computes ends with its own code and no output."""
    code = _RUN.format(work=_WORK[what].format(llm=str(smollm2), minilm=str(minilm)), pause=pause)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (5, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork_is_refused(smollm2: Path) -> None:
    """A forked child gets ConcurrentUseError, and its exit disturbs nothing."""
    code = f"""
import os, sys
from llcuda_ffi import Llama
from llcuda_ffi.errors import ConcurrentUseError
llm = Llama({str(smollm2)!r}, n_ctx=256, n_parallel=1)
pid = os.fork()
if pid == 0:
    try:
        llm.generate("x")
    except ConcurrentUseError:
        sys.exit(7)
    sys.exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert llm.generate("x", max_tokens=2).text
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
