"""vLLM's names over this engine: `from llcuda_ffi.compat.vllm import LLM, SamplingParams`."""

from __future__ import annotations

from typing import Any

from ... import __version__
from ...errors import InvalidRequest
from .async_engine import AsyncEngineArgs, AsyncLLMEngine
from .inputs import PromptType, TextPrompt, TokensPrompt
from .llm import LLM, LoRARequest
from .outputs import CompletionOutput, EmbeddingRequestOutput, Logprob, RequestOutput, ScoringRequestOutput
from .sampling_params import (
    BeamSearchParams,
    GuidedDecodingParams,
    PoolingParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

EngineArgs = AsyncEngineArgs

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "BeamSearchParams",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "EngineArgs",
    "GuidedDecodingParams",
    "LoRARequest",
    "Logprob",
    "PoolingParams",
    "PromptType",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in ("LLMEngine", "ClassificationRequestOutput", "ModelRegistry", "PoolingRequestOutput"):
        raise InvalidRequest(f"{name} is not here: LLM computes lists of prompts, AsyncLLMEngine requests as they come")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
