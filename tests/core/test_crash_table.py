"""Every misuse that would end the process with a signal ends in an exception instead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi.bundles import InstalledBundle

from ..crash import ROWS


@pytest.fixture(scope="module")
def results(bundle: InstalledBundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Row → "" or what went wrong. A child that dies is followed by another for the rows that are left."""
    found: dict[str, str] = {}
    while left := [name for name in ROWS if name not in found]:
        command = [sys.executable, "-m", "tests.crash", str(tmp_path_factory.mktemp("rows")), *left]
        root = Path(__file__).resolve().parents[2]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, cwd=root)
            out, end = done.stdout, f"the process ended with {done.returncode}: {done.stderr[-1500:]}"
        except subprocess.TimeoutExpired as error:
            out, end = (error.stdout or b"").decode(), "the process hung"
        running = None
        for line in out.splitlines():
            name, *outcome = json.loads(line)
            running = None if outcome else name
            if outcome:
                found[name] = outcome[0]
        if running:
            found[running] = end
        elif left == [name for name in ROWS if name not in found]:
            found.update(dict.fromkeys(left, end))
    return found


@pytest.mark.parametrize("name", ROWS)
def test_row(results: dict[str, str], name: str) -> None:
    """The misuse raises the exception that the row names, and the model still answers right after."""
    assert results[name] == "", results[name]
