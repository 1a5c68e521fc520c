"""The examples of docs/migrating.md and docs/llcuda.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..lora.test_lora import peft_folder
from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama

ROOT = Path(__file__).resolve().parents[2]


def examples(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / name).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(examples("migrating.md"))))
def test_migrating(smollm2: Path, tmp_path: Path, number: int) -> None:
    """Each example of docs/migrating.md prints something."""
    code = examples("migrating.md")[number]
    assert run_child(f"import os\nos.chdir({str(tmp_path)!r})\n{code}", timeout=120).strip()


@pytest.mark.bundle("v0.5.0")
@pytest.mark.parametrize("number", range(len(examples("llcuda.md"))))
def test_llcuda(tmp_path: Path, number: int) -> None:
    """Each example of docs/llcuda.md works with the files that it names."""
    make_tiny_llama(tmp_path / "base.gguf", embd=256, heads=4, heads_kv=2, ff=512)
    make_tiny_llama(tmp_path / "small.gguf")
    peft_folder(tmp_path / "my-lora")
    code = examples("llcuda.md")[number]
    assert run_child(f"import os\nos.chdir({str(tmp_path)!r})\n{code}", timeout=120).strip()
