"""What the command does before it imports anything large: an early Ctrl-C, and text in a locale of ASCII only."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from ..support.tiny_model import make_tiny_llama


def test_interrupted_while_it_imports(tmp_path: Path) -> None:
    """Ctrl-C in the first imports ends the command with 130 and without a traceback."""
    (tmp_path / "click.py").write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGINT)})\n")
    done = subprocess.run(
        [sys.executable, "-c", "from llcuda_ffi.cli import main; main()", "doctor"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")


def test_ascii_locale(tmp_path: Path) -> None:
    """Where Python takes ASCII for arguments and names of files, a prompt and a path still are what was typed."""
    folder = tmp_path / "Größe 模型"
    folder.mkdir()
    make_tiny_llama(folder / "tiny.gguf")
    done = subprocess.run(
        [sys.executable, "-m", "llcuda_ffi", "generate", "Où?", "-m", str(folder / "tiny.gguf"), "-n", "1", "--json"],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("utf-8"))["prompt"] == "Où?"


def test_words_that_the_encoding_lacks(tmp_path: Path) -> None:
    """What a terminal of another encoding cannot show is a question mark, and no error."""
    make_tiny_llama(tmp_path / "tiny.gguf")
    grammar = tmp_path / "words.gbnf"
    grammar.write_text('root ::= "é🦙"', encoding="utf-8")
    command = ["generate", "Once", "-m", str(tmp_path / "tiny.gguf"), "--grammar", str(grammar)]
    done = subprocess.run(
        [sys.executable, "-m", "llcuda_ffi", *command],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "é?\n".encode("latin-1")


def test_closed_streams(tmp_path: Path) -> None:
    """Where the caller closed all streams a message of standard input is missing, and nothing else is broken by it."""
    model, prompts, out = (tmp_path / name for name in ("tiny.gguf", "prompts.jsonl", "out.jsonl"))
    make_tiny_llama(model)
    prompts.write_text('"Once"\n')
    for status, command in (
        (1, ["generate", "-"]),  # an empty prompt
        (0, ["chat"]),
        (0, ["generate", "-n", "1", "-f", str(prompts), "-o", str(out)]),
    ):
        line = shlex.join([sys.executable, "-m", "llcuda_ffi", *command, "-m", str(model)])
        done = subprocess.run(["sh", "-c", f"{line} <&- >&- 2>&-"], timeout=60, check=False)
        assert done.returncode == status, command
    assert len(out.read_text().splitlines()) == 1
