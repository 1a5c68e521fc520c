"""Vocabularies of every family with llama.cpp's own vectors: what libllama gets right comes out right here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi.bundles import InstalledBundle

from ..support.upstream_sdist import upstream_sdist

ROOT = Path(__file__).resolve().parents[2]
VOCABULARIES = [
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe",
    "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
# without vectors of their own
OTHERS = ["aquila", "baichuan", "gpt-neox", "nomic-bert-moe"]
# WordPiece lowers, strips and separates: its text does not come back
LOSSY = {"bert-bge"}
# made after b7698
NEWER = {"gemma-4", "qwen35"}
# one of each kind: scores, merges split by std::regex, WordPiece, unigram
FAMILIES = ["llama-spm", "gpt-neox", "bert-bge", "nomic-bert-moe"]


def _run(bundle: InstalledBundle, name: str, mode: str) -> Any:
    """The worker's answer; a signal, or an exception that is not ours, fails the test."""
    path = upstream_sdist() / "vendor" / "llama.cpp" / "models" / f"ggml-vocab-{name}.gguf"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.tokenizer_worker", str(path), mode],
        cwd=ROOT,
        env={**os.environ, "LLCUDA_FFI_BUNDLE": bundle.name},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-800:]}"
    return json.loads(done.stdout)


def _expected(name: str) -> list[list[int]]:
    path = upstream_sdist() / "vendor" / "llama.cpp" / "models" / f"ggml-vocab-{name}.gguf.out"
    return [[int(word) for word in line.split()] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.bundle("v0.5.0")] if n in NEWER else []) for n in VOCABULARIES]
)
def test_vectors(bundle: InstalledBundle, name: str) -> None:
    """What libllama gives, among it each vector that it gets right, comes out for str and bytes; text comes back.

    Lone surrogates, NUL and bytes that are no UTF-8 give tokens, never a crash.
    """
    (records, odd), expected = _run(bundle, name, "texts"), _expected(name)
    assert all(record["text"] == "" for record in records[len(expected) :])  # some files end with the separator
    right = 0
    for record, wanted in zip(records, expected, strict=False):
        assert record["str"] == record["bytes"] == record["direct"], record["text"]
        right += record["direct"] == wanted
        if name not in LOSSY:  # detokenize may leave out a space before punctuation, as the file asks for it
            assert record["text"] in (record["back"], record["pieces"])
    # libllama itself misses a few vectors of some vocabularies
    assert right >= len(expected) * 0.9, f"{right} of {len(expected)}"
    assert all(isinstance(n, int) for n in odd.values()), odd


@pytest.mark.parametrize("name", OTHERS)
def test_odd_texts(bundle: InstalledBundle, name: str) -> None:
    """The same odd texts in vocabularies that have no vectors."""
    _, odd = _run(bundle, name, "texts")
    assert all(isinstance(n, int) for n in odd.values()), odd


@pytest.mark.parametrize("name", FAMILIES)
def test_a_megabyte_of_one_character(bundle: InstalledBundle, name: str) -> None:
    """A run of a million equal characters, which overflows the stack of a plain call in some vocabularies."""
    (found,) = _run(bundle, name, "megabyte").values()
    assert isinstance(found, int), found
