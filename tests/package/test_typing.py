"""What type checkers say of users' code: right code passes with the types it should have, each mistake is found."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.llama_settings import LlamaSettings
from llcuda_ffi.sampling_settings import SamplingSettings

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "typing_cases"


def marked() -> set[int]:
    """The lines of wrong.py that are."""
    lines = (CASES / "wrong.py").read_text().splitlines()
    return {i for i, line in enumerate(lines, 1) if line.endswith("# wrong")}


def test_settings_are_the_fields() -> None:
    """Every field of SamplingParams, and every argument of Llama, is a typed keyword, and nothing else is one."""
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert set(SamplingSettings.__annotations__) == fields - {"n", "json_schema"}
    taken = {name: parameter.annotation for name, parameter in inspect.signature(Llama).parameters.items()}
    taken.pop("model")
    assert {name: kind.__forward_arg__ for name, kind in LlamaSettings.__annotations__.items()} == taken


def test_mypy() -> None:
    """mypy, strict as our own check."""
    pytest.importorskip("mypy")
    files = [str(CASES / "right.py"), str(CASES / "wrong.py")]
    command = [sys.executable, "-m", "mypy", "--python-version", f"3.{sys.version_info[1]}", "--no-error-summary"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(r"(right|wrong)\.py:(\d+): error: (.*)", done.stdout)
    assert not [row for row in found if row[0] == "right"], done.stdout
    assert {int(line) for name, line, _ in found if name == "wrong"} == marked(), done.stdout


@pytest.mark.heavy
def test_pyright(tmp_path: Path) -> None:
    """pyright, which Pylance and other editors have; basedpyright is it with a Node of its own."""
    pytest.importorskip("basedpyright")
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps({"include": [str(CASES)], "typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "-p", str(config), "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [row for row in json.loads(done.stdout)["generalDiagnostics"] if row["severity"] == "error"]
    assert not [row for row in found if row["file"].endswith("right.py")], found
    assert {row["range"]["start"]["line"] + 1 for row in found if row["file"].endswith("wrong.py")} == marked(), found
