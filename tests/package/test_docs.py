"""What the documents show works: their examples are run as they stand."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama

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


def _blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(_blocks("README.md"))))
def test_readme(smollm2: Path, number: int) -> None:
    """Each Python block of the README runs and prints something."""
    assert run_child(_blocks("README.md")[number], timeout=120).strip()


PROGRAMS = ["tutorial", "troubleshooting", "embeddings", "reliability", "chat", "cache"]
ELSEWHERE = ["howto", "low-level", "gguf", "llcuda", "migrating"]  # run below, and by test_docs_llcuda.py


@pytest.mark.parametrize("page", [f"docs/{name}.md" for name in PROGRAMS])
def test_page_is_a_program(smollm2: Path, minilm: Path, page: str, tmp_path: Path) -> None:
    """The blocks of a page, in order and in one process."""
    assert run_child("\n".join(_blocks(page)), timeout=200, LLCUDA_FFI_DISK_CACHE=str(tmp_path / "prefix")).strip()


def test_gguf(tmp_path: Path) -> None:
    """The block of docs/gguf.md, with the file that it names."""
    make_tiny_llama(tmp_path / "model.gguf")
    run_child("\n".join([f"import os\nos.chdir({str(tmp_path)!r})", *_blocks("docs/gguf.md")]))


def test_every_block_is_python() -> None:
    """What cannot be run everywhere (it needs a GPU, a projector, a cluster, a test session) is Python at least."""
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages >= {*PROGRAMS, *ELSEWHERE}
    for name in pages - {*PROGRAMS, *ELSEWHERE}:
        for block in _blocks(f"docs/{name}.md"):
            compile(block, name, "exec")


@pytest.mark.heavy
@pytest.mark.parametrize("number", range(len(_blocks("docs/howto.md"))))
def test_howto(smollm2: Path, minilm: Path, number: int) -> None:
    """Each block of docs/howto.md with the package that it is about."""
    assert run_child(_blocks("docs/howto.md")[number], timeout=200).strip()


@pytest.mark.heavy
def test_site_builds(tmp_path: Path) -> None:
    """mkdocs builds the site without a warning: every link and every name of the reference is there."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
