"""llama-cpp-python's names over this engine: `from llcuda_ffi.compat.llama_cpp import Llama`."""

from __future__ import annotations

from .caches import LlamaCache, LlamaDiskCache, LlamaRAMCache
from .grammar import LlamaGrammar
from .llama import Llama, LlamaState
from .llama_speculative import LlamaPromptLookupDecoding
from .processors import LogitsProcessorList, StoppingCriteriaList

__all__ = [
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaGrammar",
    "LlamaPromptLookupDecoding",
    "LlamaRAMCache",
    "LlamaState",
    "LogitsProcessorList",
    "StoppingCriteriaList",
]
