"""vLLM's AsyncLLMEngine, by its module's name."""

from __future__ import annotations

from ..async_engine import AsyncLLMEngine

__all__ = ["AsyncLLMEngine"]
