"""The programs of examples/ run as they stand, each in a process of its own, and print what they are about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# what must stand in the output; a program that is not listed has to print something
SHOWS = {
    "alternatives": "' Paris'",
    "batch": "France: Paris",
    "chat": "prompt tokens were kept",
    "many_tasks": "19 cancelled",
    "rag": "twelve euros",
    "search": "Bread rises",
    "stream": "tokens/s",
    "structured": "Person(name=",
    "tools": "21 degrees in",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(smollm2: Path, minilm: Path, path: Path, tmp_path: Path) -> None:
    """It ends with 0, shows what it is about, and writes nothing to stderr but progress."""
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SHOWS.get(path.stem, "\n") in done.stdout, done.stdout


def test_every_listed_example_is_there() -> None:
    """The list above names programs that exist, and there are ten."""
    names = {path.stem for path in EXAMPLES}
    assert set(SHOWS) <= names
    assert len(names) >= 10
