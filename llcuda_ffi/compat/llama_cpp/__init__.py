"""llama-cpp-python's names over this engine: `from llcuda_ffi.compat.llama_cpp import Llama`."""

from __future__ import annotations

import importlib
from typing import Any

from ... import __version__
from . import llama_cpp
from .llama import Llama, LlamaState
from .llama_cache import LlamaCache, LlamaDiskCache, LlamaRAMCache
from .llama_cpp import (
    llama_backend_free,
    llama_backend_init,
    llama_supports_gpu_offload,
    llama_supports_mlock,
    llama_supports_mmap,
)
from .llama_grammar import LlamaGrammar
from .llama_speculative import LlamaPromptLookupDecoding
from .llama_tokenizer import LlamaTokenizer
from .processors import LogitsProcessorList, MinTokensLogitsProcessor, StoppingCriteriaList

_MODULES = frozenset(
    ("llama_cache", "llama_chat_format", "llama_grammar", "llama_speculative", "llama_tokenizer", "llama_types")
)

__all__ = [
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaGrammar",
    "LlamaPromptLookupDecoding",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteriaList",
    "__version__",
    "llama_backend_free",
    "llama_backend_init",
    "llama_supports_gpu_offload",
    "llama_supports_mlock",
    "llama_supports_mmap",
]


def __getattr__(name: str) -> Any:
    """llama.cpp's constants; its functions are named with what there is here."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(llama_cpp, name)
