"""Models with learned position embeddings: libllama aborts on a position beyond their rows, this package raises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi.bundles import InstalledBundle

from ..support.tiny_architectures import TINY

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.errors import InvalidRequest

path, last = sys.argv[1], int(sys.argv[2])
with Model.load(path) as model, Context(
    model, n_ctx=2048, n_batch=1024, n_ubatch=1024, embeddings="bert" in model.architecture
) as context:
    assert model.n_positions == last + 1
    batch = Batch(1024)
    batch.extend([1] * (last + 1))
    context.decode(batch)
    batch.clear()
    batch.extend([1] * (last + 2))
    if context.memory is not None:
        context.memory.clear()
    try:
        context.decode(batch)
    except InvalidRequest as error:
        print(error)
"""


@pytest.mark.parametrize(("name", "last"), [("bert", 127), ("gpt2", 511)])
def test_the_last_position_and_the_one_after(tmp_path: Path, bundle: InstalledBundle, name: str, last: int) -> None:
    """The last position computes, the next one is refused with the number that there are."""
    path = tmp_path / "model.gguf"
    TINY[name]().write(path)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(path), str(last)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert f"{last + 1} positions" in done.stdout
