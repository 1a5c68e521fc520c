"""What is in bench/results, and the words and rows in which docs/ says it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def result_of(name: str) -> dict[str, Any]:
    """What a benchmark wrote to bench/results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def where(result: dict[str, Any]) -> str:
    """When, on what and with what a result was measured."""
    machine, settings = result["machine"], result.get("settings", {})
    parts = [machine["date"], f"{machine['cores']} cores of {machine['cpu']}"]
    parts += [f"bundle {machine['bundle']}"] if "bundle" in machine else []
    return ", ".join(parts + ([settings["model"]] if "model" in settings else []))


def spread(found: dict[str, Any]) -> str:
    """The median, its range and of how many rounds."""
    digits = 3 if found["median"] < 2 else 2
    low, high = found["min"], found["max"]
    return f"{found['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, n={found['n']})"


def rows_of(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    return ["|" + "|".join(titles) + "|", "|-" * len(titles) + "|", *("|" + "|".join(row) + "|" for row in rows)]
