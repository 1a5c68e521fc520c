"""vLLM's settings of an engine, by their module's name."""

from __future__ import annotations

from ..async_engine import AsyncEngineArgs

EngineArgs = AsyncEngineArgs

__all__ = ["AsyncEngineArgs", "EngineArgs"]
