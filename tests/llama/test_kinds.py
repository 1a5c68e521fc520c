"""Every kind of model works in Llama and Embedder, or is refused by one of our exceptions, never a signal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.generation import newer
from ..support.tiny_architectures import TINY

ROOT = Path(__file__).resolve().parents[2]

_GENERATES = {"Llama.generate": "ok", "Llama.generate many": "ok", "Llama.stream": "ok", "AsyncLlama.generate": "ok"}
_EMBEDS = {"Embedder None.encode": "ok", "Embedder mean.encode": "ok", "Embedder none.encode_tokens": "ok"}
_BOTH = {**_GENERATES, **_EMBEDS, "Llama.shift": "ok", "Llama.save_state": "ok", "Llama.load_state": "ok"}
_BOTH["Llama with draft.generate"] = "ok"
_NO_SHIFT = {**_BOTH, "Llama.shift": "UnsupportedModel", "Context.memory.shift": "UnsupportedModel"}
_ONLY_EMBEDS = {"Llama": "UnsupportedModel", **_EMBEDS}

KINDS = {
    "llama": {**_BOTH, "Context.encode": "UnsupportedModel"},
    "moe": _BOTH,
    "gpt2": _BOTH,
    "gemma3": _BOTH,
    "deepseek2": _BOTH,
    "mamba": _BOTH,
    "granite-hybrid": _BOTH,
    "lfm2-window": _NO_SHIFT,
    "qwen35": _NO_SHIFT,
    "bert": _ONLY_EMBEDS,
    "t5encoder": {**_ONLY_EMBEDS, "Context.decode": "UnsupportedModel"},
    "dream": _ONLY_EMBEDS,
    "t5": {**_GENERATES, **_EMBEDS, "Llama.shift": "UnsupportedModel", "Llama with draft": "UnsupportedModel"},
}


# b7698 does not know that window, and shifts that model
@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=newer if found is _NO_SHIFT else ()) for name, found in KINDS.items()]
)
def test_kind(kind: str, tmp_path: Path) -> None:
    """Each public method, in a child process, ends in a result or one of our exceptions: in those of KINDS."""
    path = tmp_path / f"{kind}.gguf"
    TINY[kind]().write(path)
    strict = ["-X", "dev", "-W", "error"] if kind in ("llama", "t5") else []
    command = [sys.executable, *strict, "-m", "tests.support.kinds_worker", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {name: found.get(name) for name in KINDS[kind]} == KINDS[kind]
