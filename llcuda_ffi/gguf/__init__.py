"""GGUF files: a reader, and the preflight that stops files which would take the process down."""

from __future__ import annotations

from .layout import TensorInfo
from .preflight.adapter import check_adapter
from .preflight.check import GGUFReport, check
from .reader import GGUFReader
from .types import GGMLType, ValueType

__all__ = ["GGMLType", "GGUFReader", "GGUFReport", "TensorInfo", "ValueType", "check", "check_adapter"]
