"""A file of texts to a file of vectors: in bounded memory, and after a kill continued where it was.

Rows are computed in parts of a fixed number. A part is a file of its own beside the result, renamed into place when it
is whole: what is there is done, what is not there is not. At the end the parts become one file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from ..embedder import Embedder
from ..errors import InvalidRequest
from ..fetch.progress import Progress
from ..regular_file import replaceable
from .rows import BadRow, parquet, read_texts

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EmbeddedFile:
    """What became of a file.

    Attributes:
        path: the vectors; a row of NaN where a row failed.
        rows, resumed, failed: all rows, those computed by an earlier run, those that failed.
        errors: the file that says why (row and message, JSON lines), None if none failed.
    """

    path: Path
    rows: int
    resumed: int
    failed: int
    errors: Path | None


def embed_file(
    embedder: Embedder,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    column: str = "text",
    part_rows: int = 2048,
    restart: bool = False,
    show_progress: bool = False,
    **options: Any,
) -> EmbeddedFile:
    """Embed the texts of a file, row by row.

    Args:
        source: .txt, .jsonl, .csv or .parquet.
        target: .npy (rows, dim) or .parquet (columns text and embedding).
        column: where the text is; not for .txt.
        part_rows: rows computed and kept together.
        restart: forget what an earlier run did.
        options: those of `Embedder.encode`: truncate, prompt, prompt_name, dim, normalize, dtype.

    Raises:
        InvalidRequest: a format or column that is not there; an earlier run with other settings; a run in progress.
    """
    origin, final = Path(source), replaceable(target)
    if final.suffix.lower() not in (".npy", ".parquet"):
        raise InvalidRequest(f"{final.name}: the result must be .npy or .parquet")
    if final.suffix.lower() == ".parquet":
        parquet()
    if not origin.is_file():
        raise InvalidRequest(f"there is no file {origin}")
    next(read_texts(origin, column), None)  # a wrong format or column is told before anything is written
    if not final.absolute().parent.is_dir():
        raise InvalidRequest(f"there is no folder {final.absolute().parent} for the result")
    work = final.with_name(final.name + ".parts")
    try:
        with FileLock(final.with_name(final.name + ".lock"), timeout=0):
            if restart:
                shutil.rmtree(work, ignore_errors=True)
            _begin(work, embedder, origin, {"column": column, "part_rows": part_rows, **options})
            resumed = _compute(embedder, origin, work, column, part_rows, show_progress, options)
            return _finish(work, origin, final, column, resumed)
    except Timeout:
        raise InvalidRequest(f"another run is writing {final}: wait for it, or give another name") from None


def _begin(work: Path, embedder: Embedder, origin: Path, options: dict[str, Any]) -> None:
    """Note what is computed, or check that an earlier run computed the same."""
    about = origin.stat()
    job = {
        "source": [about.st_size, about.st_mtime_ns],
        "model": [embedder.model.path.name, embedder.model.size],
        "options": {name: str(value) for name, value in sorted(options.items())},
    }
    work.mkdir(exist_ok=True)
    note = work / "job.json"
    if note.is_file():
        try:
            same = json.loads(note.read_text()) == job
        except ValueError:
            same = False
        if not same:
            raise InvalidRequest(
                f"{work} is of a run with another source, model or options: pass --restart to compute everything again"
            )
        return
    fresh = work / "job.tmp"
    fresh.write_text(json.dumps(job))
    os.replace(fresh, note)


def _parts(rows: Iterator[str], size: int) -> Iterator[list[str]]:
    while part := list(islice(rows, size)):
        yield part


def _compute(
    embedder: Embedder,
    origin: Path,
    work: Path,
    column: str,
    part_rows: int,
    show_progress: bool,
    options: dict[str, Any],
) -> int:
    total = sum(1 for _ in read_texts(origin, column)) if show_progress else None
    resumed = 0
    # the rate and the time left are of what this run computes
    there = len(list(work.glob("part-*.npy"))) * part_rows
    there = there if total is None else min(there, total)
    with Progress("", total, show_progress, unit="row", done=there) as shows:
        for number, texts in enumerate(_parts(read_texts(origin, column), part_rows)):
            place = work / f"part-{number:07}.npy"
            if place.is_file():
                resumed += len(texts)
            else:
                vectors, errors = _encode(embedder, texts, number * part_rows, options)
                # the errors first: the part's appearance says that both are there
                if errors:
                    _write(work / f"part-{number:07}.jsonl", "".join(json.dumps(e) + "\n" for e in errors).encode())
                whole = io.BytesIO()
                np.save(whole, vectors)  # into a file it would hide what the disk says
                _write(place, whole.getbuffer())
                shows.advance(len(texts))
    return resumed


def _encode(
    embedder: Embedder, texts: Sequence[str], first: int, options: dict[str, Any]
) -> tuple[Array, list[dict[str, Any]]]:
    """Vectors of a part; rows that fail become NaN and an error each."""
    errors: list[dict[str, Any]] = []
    good: list[int] = []
    for i, text in enumerate(texts):
        if isinstance(text, BadRow):
            errors.append({"row": first + i, "error": str(text)})
        else:
            good.append(i)
    try:
        found = embedder.encode([texts[i] for i in good], show_progress=False, **options)
    except InvalidRequest as error:
        # some row is too long or the like: find out which, one by one
        failed = None
        rows, kept = [], []
        for i in good:
            try:
                rows.append(embedder.encode(texts[i], show_progress=False, **options))
                kept.append(i)
            except InvalidRequest as reason:
                failed = reason
                errors.append({"row": first + i, "error": str(reason).replace("text 0", "the text", 1)})
        if failed is None or not (rows or errors):
            raise error from None
        good = kept
        found = np.stack(rows) if rows else embedder.encode([], show_progress=False, **options)
    vectors = np.full((len(texts), found.shape[1]), np.nan, found.dtype)
    vectors[good] = found
    return vectors, sorted(errors, key=lambda e: int(e["row"]))


def _write(path: Path, data: bytes | memoryview) -> None:
    fresh = path.with_suffix(".tmp")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(fresh)) from error  # a full disk does not say which
    os.replace(fresh, path)


def _finish(work: Path, origin: Path, final: Path, column: str, resumed: int) -> EmbeddedFile:
    """Join the parts, put the result in place, remove the parts."""
    parts = sorted(work.glob("part-*.npy"))
    fresh = work / ("whole" + final.suffix)
    if final.suffix.lower() == ".npy":
        rows = _join_npy(parts, fresh)
    else:
        rows = _join_parquet(parts, fresh, read_texts(origin, column))
    log = final.with_name(final.name + ".errors.jsonl")
    lines = b"".join(path.read_bytes() for path in sorted(work.glob("part-*.jsonl")))
    if lines:
        _write(log, lines)
    else:
        log.unlink(missing_ok=True)
    os.replace(fresh, final)
    shutil.rmtree(work)
    return EmbeddedFile(final, rows, resumed, lines.count(b"\n"), log if lines else None)


def _join_npy(parts: Sequence[Path], target: Path) -> int:
    heads = [np.load(part, mmap_mode="r") for part in parts[:1]]
    width, dtype = (heads[0].shape[1], heads[0].dtype) if heads else (0, np.dtype(np.float32))
    rows = sum(int(np.load(part, mmap_mode="r").shape[0]) for part in parts)
    with target.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (rows, width)})
        for part in parts:
            file.write(np.ascontiguousarray(np.load(part)).tobytes())
        file.flush()
        os.fsync(file.fileno())
    return rows


def _join_parquet(parts: Sequence[Path], target: Path, texts: Iterator[str]) -> int:
    import pyarrow as pa

    writer, rows = None, 0
    try:
        for part in parts:
            vectors = np.load(part)
            row_texts = [None if isinstance(t, BadRow) else str(t) for t in islice(texts, len(vectors))]
            flat = pa.array(vectors.ravel())
            embedding = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
            table = pa.table({"text": pa.array(row_texts, pa.string()), "embedding": embedding})
            writer = writer or parquet().ParquetWriter(target, table.schema)
            writer.write_table(table)
            rows += len(vectors)
        if writer is None:
            schema = pa.schema({"text": pa.string(), "embedding": pa.list_(pa.float32())})
            writer = parquet().ParquetWriter(target, schema)
    finally:
        if writer is not None:
            writer.close()
    return rows
