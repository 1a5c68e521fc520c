"""vLLM's AsyncLLM, by its module's name."""

from __future__ import annotations

from ...async_engine import AsyncLLMEngine

AsyncLLM = AsyncLLMEngine

__all__ = ["AsyncLLM"]
