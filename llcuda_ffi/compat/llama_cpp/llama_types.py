"""llama-cpp-python's types: its results are plain dicts, and so are they here."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if not name[:1].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return dict[str, Any]
