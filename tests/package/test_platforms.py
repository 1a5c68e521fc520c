"""Other systems than Linux: everything imports, and one sentence comes before anything is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.child_process import run_child

# what other packages import on their own is imported before the system's name changes
ELSEWHERE = """
import asyncio, ctypes, multiprocessing, subprocess, sys
import cffi, click, filelock, httpx2, huggingface_hub, jinja2, numpy, platformdirs, tqdm
import os, platform
sys.platform, platform.machine = sys.argv[1], lambda: "arm64"
gone = ["sched_getaffinity", "memfd_create", "posix_fadvise"]
if sys.platform == "win32":
    gone += ["fork", "getuid", "killpg", "register_at_fork", "sysconf", "waitpid"]
    sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource")))
for name in gone:
    delattr(os, name)
import llcuda_ffi.bundles.build, llcuda_ffi.cli.bundle, llcuda_ffi.cli.generate, llcuda_ffi.server.app
from llcuda_ffi import Embedder, Llama, Model, bundles
from llcuda_ffi.errors import BundleNotFound
from llcuda_ffi.hardware.cpu import cpu_features, usable_cores
usable_cores(), cpu_features()
for use in (
    lambda: Llama("smollm2-135m"),
    lambda: Llama("smollm2-135m", n_ctx=64, isolate=True),
    lambda: Embedder("all-minilm-l6-v2"),
    lambda: bundles.ensure(),
    llcuda_ffi.bundles.build.build,
):
    try:
        use()
    except BundleNotFound as error:
        print(error)
    else:
        print("nothing raised")
"""


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_one_sentence(system: str, tmp_path: Path) -> None:
    """Each front door says the same at once; the cache stays empty."""
    said = run_child(ELSEWHERE, system, LLCUDA_FFI_CACHE=str(tmp_path / "cache"), timeout=60).splitlines()
    sentence = f"llcuda_ffi runs on Linux (x86-64, aarch64) only, this machine is {system}-arm64: use WSL on Windows"
    assert [line.startswith(sentence) for line in said] == [True] * 5
    assert not (tmp_path / "cache").exists()
