"""Building llama.cpp for this machine: source, tools, options, the run; the result is a bundle used by name."""

from __future__ import annotations

from .run import build

__all__ = ["build"]
