"""The commands quantize and lora."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..lora.test_lora import peft_folder
from ..support.tiny_model import make_tiny_llama


def run(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "llcuda_ffi", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout if not code else done.stderr


@pytest.mark.bundle("v0.5.0")
def test_quantize(tmp_path: Path) -> None:
    """A dry run and the real one agree; errors are one line; the target is there only after success."""
    make_tiny_llama(tmp_path / "a.gguf", embd=256, ff=256)
    arguments = ["quantize", tmp_path / "a.gguf", "-t", "Q4_K_M", "--tensor-type", "ffn_down=Q8_0", "--json"]
    planned = json.loads(run(*arguments, "--dry-run"))
    done = json.loads(run(*arguments, tmp_path / "q.gguf"))
    assert done["tensor_bytes"] == planned["tensor_bytes"]
    assert done["types"]["Q8_0"] >= 2
    assert done["file_bytes"] == (tmp_path / "q.gguf").stat().st_size
    assert "bits per weight" in run("quantize", tmp_path / "a.gguf", "--dry-run")
    assert run("quantize", tmp_path / "a.gguf", tmp_path / "x.gguf", "-t", "Q9", code=1).startswith("error: ftype")
    assert "TARGET" in run("quantize", tmp_path / "a.gguf", code=2)
    assert not (tmp_path / "x.gguf").exists()


def test_lora(tmp_path: Path) -> None:
    """A folder of peft becomes an adapter, and is merged with a scale."""
    make_tiny_llama(tmp_path / "a.gguf")
    folder = peft_folder(tmp_path / "p")
    assert run("lora", "convert", folder, tmp_path / "a.gguf", tmp_path / "l.gguf").strip() == str(tmp_path / "l.gguf")
    run("lora", "merge", tmp_path / "a.gguf", f"{folder}:0.5", "-o", tmp_path / "m1.gguf")
    run("lora", "merge", tmp_path / "a.gguf", f"{tmp_path / 'l.gguf'}:0.5", "-o", tmp_path / "m2.gguf")
    assert (tmp_path / "m1.gguf").read_bytes() == (tmp_path / "m2.gguf").read_bytes()
    run("lora", "merge", tmp_path / "a.gguf", f"{folder}:half", "-o", tmp_path / "m3.gguf", code=1)
