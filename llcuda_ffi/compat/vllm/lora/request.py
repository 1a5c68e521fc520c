"""vLLM's LoRARequest, by its module's name."""

from __future__ import annotations

from ..llm import LoRARequest

__all__ = ["LoRARequest"]
