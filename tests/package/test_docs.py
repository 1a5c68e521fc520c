"""What the documents show works: their examples are run as they stand."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from ..support.child_process import run_child

ROOT = Path(__file__).resolve().parents[2]
DOCTESTS = """
import doctest, sys
failed, tried = doctest.testfile(sys.argv[1], module_relative=False, encoding="utf-8")
assert tried, "there is no example"
sys.exit(bool(failed))
"""


@pytest.mark.bundle("v0.5.0")
def test_low_level(smollm2: Path) -> None:
    """Every example of docs/low-level.md prints what it says."""
    text = (ROOT / "docs" / "low-level.md").read_text()
    # a fence would belong to the expected output: each block with examples ends with an empty line
    assert not re.search(r"^>>> .*\n```$", text, re.MULTILINE)
    assert len(doctest.DocTestParser().get_examples(text)) > 20
    run_child(DOCTESTS, ROOT / "docs" / "low-level.md", timeout=120)


README = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(README)))
def test_readme(smollm2: Path, number: int) -> None:
    """Each Python block of the README runs and prints something."""
    assert run_child(README[number], timeout=120).strip()
