"""`llcuda-ffi embed`: formats, errors by row, and runs that are killed and started again."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from llcuda_ffi import Embedder
from llcuda_ffi.cli.embed import command
from llcuda_ffi.conversion.bert import convert_bert
from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.pipelines.files import embed_file

from ..support.tiny_bert import WORDS, write_tiny_bert

ROWS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + i % 9)) for i in range(500)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny embedding model."""
    place = tmp_path_factory.mktemp("model")
    return convert_bert(write_tiny_bert(place / "bert"), place / "tiny.gguf", "f32")


@pytest.fixture(scope="module")
def embedder(model: Path) -> Iterator[Embedder]:
    """It, loaded."""
    with Embedder(model, n_contexts=1) as made:
        yield made


@pytest.fixture(scope="module")
def expected(embedder: Embedder) -> np.ndarray:
    """The vectors of all rows."""
    return embedder.encode(ROWS)


def _source(folder: Path, suffix: str) -> Path:
    path = folder / f"in{suffix}"
    if suffix == ".txt":
        path.write_text("\n".join(ROWS) + "\n")
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": row, "n": i}) + "\n" for i, row in enumerate(ROWS)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["n", "text"])
            writer.writerows(enumerate(ROWS))
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_formats(tmp_path: Path, model: Path, expected: np.ndarray, suffix: str) -> None:
    """Each input gives all rows in their order; no parts are left."""
    target = tmp_path / "out.npy"
    arguments = [str(_source(tmp_path, suffix)), str(target), "-m", str(model), "-q", "--part-rows", "64"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert np.allclose(np.load(target), expected, atol=5e-3)
    assert not (tmp_path / "out.npy.parts").exists()


def test_errors_by_row(tmp_path: Path, embedder: Embedder, expected: np.ndarray) -> None:
    """Rows without a text or too long are NaN and named in the error file; the others are computed."""
    path = tmp_path / "in.jsonl"
    rows = [json.dumps({"text": ROWS[0]}), "{", json.dumps({"text": "cat " * 200}), json.dumps({"text": 5}), '"a b"']
    path.write_text("\n".join(rows))
    done = embed_file(embedder, path, tmp_path / "out.npy")
    vectors = np.load(done.path)
    assert (done.rows, done.failed) == (5, 3)
    assert np.isnan(vectors).any(axis=1).tolist() == [False, True, True, True, False]
    assert np.allclose(vectors[0], expected[0], atol=5e-3)
    assert done.errors is not None
    told = [json.loads(line) for line in done.errors.read_text().splitlines()]
    assert [e["row"] for e in told] == [1, 2, 3]
    assert "202 tokens" in told[1]["error"]


def test_empty_file(tmp_path: Path, embedder: Embedder) -> None:
    """No rows give an array of no rows."""
    (tmp_path / "in.txt").write_text("")
    assert np.load(embed_file(embedder, tmp_path / "in.txt", tmp_path / "out.npy").path).shape[0] == 0


def test_full_disk(tmp_path: Path, model: Path, expected: np.ndarray) -> None:
    """What the disk refuses is named with the file; with room again the run goes on."""
    command = [sys.executable, "-m", "llcuda_ffi", "embed", str(_source(tmp_path, ".txt")), str(tmp_path / "out.npy")]
    command += ["-m", str(model), "-q", "--part-rows", "256"]
    done = subprocess.run(
        ["sh", "-c", f"ulimit -f 8; exec {shlex.join(command)}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*out\.npy\.parts/part-0000000\.tmp: File too large\n", done.stderr), done.stderr
    assert subprocess.run(command, check=False).returncode == 0
    assert np.allclose(np.load(tmp_path / "out.npy"), expected, atol=5e-3)


def test_byte_order_mark(tmp_path: Path, embedder: Embedder, expected: np.ndarray) -> None:
    """A file that begins with a mark, as editors on Windows write it, has the same first row."""
    for suffix in (".txt", ".jsonl"):
        source = _source(tmp_path, suffix)
        source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
        found = np.load(embed_file(embedder, source, tmp_path / "out.npy").path)
        assert np.allclose(found, expected, atol=5e-3)


def test_killed_and_resumed(tmp_path: Path, model: Path, expected: np.ndarray) -> None:
    """Killed twice in the middle and started again: every row once, the same vectors."""
    source, target = _source(tmp_path, ".txt"), tmp_path / "out.npy"
    # one part per call of a slowed encode, so that a kill surely comes in the middle
    code = (
        "import sys, time\n"
        "from llcuda_ffi.embedder import Embedder\n"
        "from llcuda_ffi.cli import main\n"
        "encode = Embedder.encode\n"
        "Embedder.encode = lambda *a, **k: (time.sleep(0.05), encode(*a, **k))[1]\n"
        "main()\n"
    )
    arguments = ["embed", str(source), str(target), "-m", str(model), "-q", "--part-rows", "16"]
    parts = tmp_path / "out.npy.parts"
    for wanted in (3, 9):
        child = subprocess.Popen([sys.executable, "-c", code, *arguments])
        deadline = time.monotonic() + 60
        while len(list(parts.glob("part-*.npy"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        child.wait()
        assert not target.exists()
    last = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "by an earlier run" in last.stderr
    assert np.allclose(np.load(target), expected, atol=5e-3)


def test_other_settings_do_not_mix(tmp_path: Path, embedder: Embedder) -> None:
    """Parts of a run with other options are refused, unless everything is computed again."""
    source, target = _source(tmp_path, ".txt"), tmp_path / "out.npy"
    parts = tmp_path / "out.npy.parts"
    parts.mkdir()
    (parts / "job.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="--restart"):
        embed_file(embedder, source, target)
    assert embed_file(embedder, source, target, restart=True, dim=8).rows == len(ROWS)
    assert np.load(target).shape == (500, 8)


def test_bad_names(tmp_path: Path, embedder: Embedder) -> None:
    """Formats, files and columns that are not there are named."""
    source = _source(tmp_path, ".csv")
    for arguments, match in (
        ((source, tmp_path / "out.xls"), r"\.npy or"),
        ((tmp_path / "no.txt", tmp_path / "out.npy"), "no file"),
        ((source, tmp_path / "no" / "out.npy"), "no folder"),
    ):
        with pytest.raises(InvalidRequest, match=match):
            embed_file(embedder, *arguments)
    with pytest.raises(InvalidRequest, match="no column"):
        embed_file(embedder, source, tmp_path / "out.npy", column="body")
    assert embed_file(embedder, source, tmp_path / "out.npy").rows == len(ROWS)  # nothing was left that hinders it
