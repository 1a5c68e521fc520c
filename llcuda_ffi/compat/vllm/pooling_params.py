"""vLLM's PoolingParams, by its module's name."""

from __future__ import annotations

from .sampling_params import PoolingParams

__all__ = ["PoolingParams"]
