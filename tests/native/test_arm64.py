"""On 64-bit ARM, emulated by qemu-user: `.ci/arm64 FOLDER` makes what these tests need and runs them.

LLCUDA_FFI_ARM64 names that folder: `python3` in it runs Debian's Python for arm64, `site` holds the wheels.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from llcuda_ffi import hub

from ..crash import ROWS
from ..support.tiny_model import make_tiny_llama

PLACE = os.environ.get("LLCUDA_FFI_ARM64", "")
ROOT = Path(__file__).resolve().parents[2]
QUICK = [name for name, row in ROWS.items() if row.__module__.endswith("batches")]

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not (PLACE and Path(PLACE, "python3").exists()),
        reason="there is no Python for arm64 under qemu: `.ci/arm64 FOLDER` makes one and runs this",
    ),
]
GUARD = """
from llcuda_ffi.native.load import load
here = load()
print(here.bundle.name, here.profile.name, *here.backends)
"""
GENERATE = """
import sys
from llcuda_ffi import Llama
with Llama(sys.argv[1], n_ctx=128, n_parallel=1, n_threads=1, bundle=sys.argv[2]) as llm:
    print(llm.generate("the quick brown fox", max_tokens=16, temperature=0, ignore_eos=True).token_ids)
"""


def arm(*arguments: str | Path, **environment: str) -> str:
    """What a Python for arm64 prints."""
    settings = {
        "PYTHONHOME": f"{PLACE}/root/usr",
        "PYTHONPATH": os.pathsep.join([str(ROOT), f"{PLACE}/site"]),
        "LLCUDA_FFI_CACHE": f"{PLACE}/cache",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [f"{PLACE}/python3", *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **settings, **environment}, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", ["v0.5.0-cpu", "v0.6.0-cpu"])
def test_install_and_guard(name: str) -> None:
    """The pin for this architecture is installed, and the guard finds its ABI by AArch64's calling convention."""
    arm("-m", "llcuda_ffi", "bundle", "install", name)
    assert arm("-c", GUARD, LLCUDA_FFI_BUNDLE=name).split() == [name, name.removesuffix("-cpu"), "CPU"]


@pytest.mark.parametrize("name", ["v0.5.0-cpu", "v0.6.0-cpu"])
def test_same_tokens_as_x86(name: str, tmp_path: Path) -> None:
    """A model in F32 gives the same greedy tokens on both architectures."""
    make_tiny_llama(tmp_path / "tiny.gguf")
    here = subprocess.run(
        [*("python3", "-c", GENERATE), tmp_path / "tiny.gguf", name],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(arm("-c", GENERATE, tmp_path / "tiny.gguf", name)) == json.loads(here.stdout)


def test_demo() -> None:
    """Real text of a real model."""
    folder = Path(PLACE, "cache", "models", "smollm2-135m")
    folder.mkdir(parents=True, exist_ok=True)
    model = hub.resolve("smollm2-135m", progress=False)
    for file in (model, model.with_name("receipt.json")):
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    assert "llama" in arm("-m", "llcuda_ffi", "demo", "-n", "8").lower()


def test_crash_table(tmp_path: Path) -> None:
    """Misuses that would end the process end in exceptions there too: the quick rows."""
    out = arm("-m", "tests.crash", tmp_path, *QUICK)
    outcomes = [json.loads(line) for line in out.splitlines()]
    assert [one for one in outcomes if len(one) == 2 and one[1]] == []
    assert {one[0] for one in outcomes if len(one) == 2} == set(QUICK)
