"""Texts out of files, row by row, so that a file need not fit into memory."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, MissingExtra

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")


class BadRow(str):
    """In place of a text: why the row has none."""


def read_texts(path: Path, column: str) -> Iterator[str]:
    """One text per row; a BadRow where a row has no text.

    Args:
        path: .txt (a text per line), .jsonl (objects, or plain strings), .csv (with a header) or .parquet.
        column: the field that holds the text; not for .txt.

    Raises:
        InvalidRequest: another format, a file that cannot be read, or no such column.
    """
    suffix = path.suffix.lower()
    readers = {".txt": _lines, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if suffix not in readers:
        raise InvalidRequest(f"{path.name}: the input must be one of {', '.join(FORMATS)}")
    try:
        yield from readers[suffix](path, column)
    except (OSError, UnicodeError, csv.Error) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error


def _lines(path: Path, _column: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for line in file:
            yield line.rstrip("\r\n")


def _jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield BadRow(f"not JSON: {error}")
                continue
            yield _text(row.get(column) if isinstance(row, dict) else row, column)


def _csv(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or ()):
            raise _no_column(path, column, list(reader.fieldnames or ()))
        for row in reader:
            yield _text(row.get(column), column)


def _parquet(path: Path, column: str) -> Iterator[str]:
    file = parquet().ParquetFile(path)
    if column not in file.schema_arrow.names:
        raise _no_column(path, column, file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=1024, columns=[column]):
        for value in batch.column(0):
            yield _text(value.as_py(), column)


def _text(value: object, column: str) -> str:
    if isinstance(value, str):
        return value
    return BadRow(f"no text in {column!r}: {value!r:.60}")


def _no_column(path: Path, column: str, there: list[str]) -> InvalidRequest:
    return InvalidRequest(f"{path.name} has no column {column!r}: name one of {', '.join(there)} with --column")


def parquet() -> Any:
    """The module pyarrow.parquet.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as module
    except ImportError:
        raise MissingExtra("Parquet files need pyarrow: pip install pyarrow, or use .npy and .jsonl") from None
    return module
