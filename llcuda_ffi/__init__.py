"""llcuda_ffi: llama.cpp in this process, from a verified bundle.

    from llcuda_ffi import Llama

    with Llama("smollm2-135m") as llm:
        print(llm.generate("Once upon a time", max_tokens=64).text)

Importing this package reads no file, opens no library and touches no network: names load where they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, without the time of its import

__version__ = "2.1.0"

__all__ = [
    "AsyncLlama",
    "Batch",
    "ChatChunk",
    "ChatCompletion",
    "ChatMessage",
    "Chunk",
    "Completion",
    "Context",
    "ContextParams",
    "Embedder",
    "GGUFReader",
    "Llama",
    "LlcudaError",
    "Memory",
    "Model",
    "ModelParams",
    "Reranker",
    "SamplerChain",
    "SamplingParams",
    "ToolCall",
    "Vocab",
    "__version__",
]

_WHERE = {
    "AsyncLlama": "async_llama",
    "Batch": "core.batch",
    "ChatChunk": "chat.results",
    "ChatCompletion": "chat.results",
    "ChatMessage": "chat.results",
    "Chunk": "engine.results",
    "Completion": "engine.results",
    "Context": "core.context",
    "ContextParams": "params",
    "Embedder": "embedder",
    "GGUFReader": "gguf",
    "Llama": "llama",
    "LlcudaError": "errors",
    "Memory": "core.memory",
    "Model": "core.model",
    "ModelParams": "params",
    "Reranker": "embedding.reranker",
    "SamplerChain": "core.sampler",
    "SamplingParams": "sampling_params",
    "ToolCall": "chat.parsing.deltas",
    "Vocab": "core.vocab",
}

# parts of the package that are reached as attributes, such as llcuda_ffi.errors
_MODULES = frozenset(
    ["bundles", "compat", "enums", "errors", "gguf", "hub", "integrations", "llcuda", "lora", "pipelines", "structured"]
)

if TYPE_CHECKING:
    from .async_llama import AsyncLlama
    from .chat.parsing.deltas import ToolCall
    from .chat.results import ChatChunk, ChatCompletion, ChatMessage
    from .core.batch import Batch
    from .core.context import Context
    from .core.memory import Memory
    from .core.model import Model
    from .core.sampler import SamplerChain
    from .core.vocab import Vocab
    from .embedder import Embedder
    from .embedding.reranker import Reranker
    from .engine.results import Chunk, Completion
    from .errors import LlcudaError
    from .gguf import GGUFReader
    from .llama import Llama
    from .params import ContextParams, ModelParams
    from .sampling_params import SamplingParams


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f".{name}", __name__)
    where = _WHERE.get(name)
    if where is None:
        from .keywords import nearest

        near = [] if name.startswith("_") else nearest(name, __all__)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(import_module(f".{where}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
