"""vLLM's names over this engine: `from llcuda_ffi.compat.vllm import LLM, SamplingParams`."""

from __future__ import annotations

from .async_engine import AsyncEngineArgs, AsyncLLMEngine
from .engine import LLM, LoRARequest
from .outputs import CompletionOutput, EmbeddingRequestOutput, Logprob, RequestOutput, ScoringRequestOutput
from .params import BeamSearchParams, GuidedDecodingParams, PoolingParams, SamplingParams, StructuredOutputsParams

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "BeamSearchParams",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "GuidedDecodingParams",
    "LoRARequest",
    "Logprob",
    "PoolingParams",
    "RequestOutput",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
]
