"""llama-cpp-python's names over this engine: `from llcuda_ffi.compat.llama_cpp import Llama`."""

from __future__ import annotations

import importlib
from typing import Any

from ... import __version__
from . import llama_cpp, llama_types
from .llama import Llama, LlamaState
from .llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from .llama_cpp import (
    llama_backend_free,
    llama_backend_init,
    llama_supports_gpu_offload,
    llama_supports_mlock,
    llama_supports_mmap,
)
from .llama_grammar import LlamaGrammar
from .llama_speculative import LlamaPromptLookupDecoding
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from .processors import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

_MODULES = frozenset(
    ("llama_cache", "llama_chat_format", "llama_grammar", "llama_speculative", "llama_tokenizer", "llama_types")
)
_TYPES = ("ChatCompletion", "Completion", "CreateChatCompletion", "CreateCompletion", "CreateEmbedding", "Embedding")

__all__ = [
    "BaseLlamaCache",
    "BaseLlamaTokenizer",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaGrammar",
    "LlamaPromptLookupDecoding",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "__version__",
    "llama_backend_free",
    "llama_backend_init",
    "llama_supports_gpu_offload",
    "llama_supports_mlock",
    "llama_supports_mmap",
]


def __getattr__(name: str) -> Any:
    """llama.cpp's constants and llama-cpp-python's types; C functions are named with what there is here."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name.startswith(_TYPES):
        return getattr(llama_types, name)
    return getattr(llama_cpp, name)
