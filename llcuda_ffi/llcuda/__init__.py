"""llcuda's API, in this process: `from llcuda_ffi import llcuda` instead of `import llcuda` (docs/migrating.md)."""

from __future__ import annotations

from typing import Any

from .. import __version__ as __version__
from ..keywords import nearest

_WHERE = {
    "ChatEngine": "chat",
    "ConversationManager": "chat",
    "EmbeddingEngine": "embeddings",
    "SemanticSearch": "embeddings",
    "TextClustering": "embeddings",
    "InferResult": "engine",
    "InferenceEngine": "engine",
    "quick_infer": "engine",
    "auto_configure_for_model": "machine",
    "check_cuda_available": "machine",
    "check_gpu_compatibility": "machine",
    "detect_platform": "machine",
    "find_gguf_models": "machine",
    "get_cuda_device_info": "machine",
    "get_recommended_gpu_layers": "machine",
    "print_system_info": "machine",
    "GGUFTensorInfo": "models",
    "ModelInfo": "models",
    "ModelManager": "models",
    "download_model": "models",
    "get_model_recommendations": "models",
    "inspect_gguf": "models",
    "list_models": "models",
    "list_registry_models": "models",
    "load_model_smart": "models",
    "ServerManager": "server",
    "LoRAAdapter": "unsloth",
    "UnslothExporter": "unsloth",
    "UnslothModelLoader": "unsloth",
    "export_to_gguf": "unsloth",
    "export_to_llcuda": "unsloth",
    "load_unsloth_model": "unsloth",
    "merge_lora_adapters": "unsloth",
    "save_pretrained_llcuda": "unsloth",
}

_ELSEWHERE = {
    "GGUFReader": "gguf",
    "DynamicQuantizer": "quantization",
    "GGUFConverter": "conversion.tensors",
    "convert_to_gguf": "conversion.tensors",
    "dequantize_nf4": "quantization",
    "quantize_nf4": "quantization",
    "save_gguf": "conversion.tensors",
    "ChatWidget": "jupyter",
    "compare_temperatures": "jupyter",
    "display_metrics": "jupyter",
    "progress_generate": "jupyter",
    "stream_generate": "jupyter",
    "visualize_tokens": "jupyter",
    "Device": "tensor",
    "Tensor": "tensor",
}

# what computed nothing there, and what does it here
_GONE = {
    "CUDAGraph": "llcuda_ffi.native.cuda.CudaOptions switches CUDA graphs",
    "ContinuousBatching": "it is always on: load_model(n_parallel=...)",
    "FlashAttentionConfig": "load_model(flash_attn=...)",
    "KVCacheConfig": "load_model(kv_type=..., kv_cells=...)",
    "TensorCoreConfig": "llcuda_ffi.native.cuda.CudaOptions chooses the kernels of matrices",
    "TritonKernel": "llcuda_ffi.tensor computes with libggml's kernels",
    "matmul": "a @ b of two Tensors",
}

__all__ = sorted([*_WHERE, *_ELSEWHERE])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _WHERE:
        value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    elif name in _ELSEWHERE:
        value = getattr(import_module(f"..{_ELSEWHERE[name]}", __name__), name)
    else:
        near = nearest(name, __all__)
        here = f"did you mean {' or '.join(near)}?" if near else "docs/migrating.md lists what there is"
        here = _GONE.get(name, here)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {here}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
