"""vLLM's LoRARequest, by its module's name."""

from __future__ import annotations

from ..engine import LoRARequest

__all__ = ["LoRARequest"]
