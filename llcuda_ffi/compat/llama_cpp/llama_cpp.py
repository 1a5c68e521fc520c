"""llama-cpp-python's low level: llama.cpp's constants and a few functions; for its others there are classes here."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from ...enums import AttentionType, FlashAttnType, GGMLType, NumaStrategy, PoolingType, RopeScalingType, SplitMode
from ...errors import InvalidRequest
from ...hardware.gpu import survey

_ENUMS: dict[str, type[IntEnum]] = {
    "GGML_NUMA_STRATEGY": NumaStrategy,
    "GGML_TYPE": GGMLType,
    "LLAMA_ATTENTION_TYPE": AttentionType,
    "LLAMA_FLASH_ATTN_TYPE": FlashAttnType,
    "LLAMA_POOLING_TYPE": PoolingType,
    "LLAMA_ROPE_SCALING_TYPE": RopeScalingType,
    "LLAMA_SPLIT_MODE": SplitMode,
}
CONSTANTS: dict[str, int] = {
    "LLAMA_DEFAULT_SEED": 0xFFFFFFFF,
    **{f"{start}_{member.name}": int(member) for start, kind in _ENUMS.items() for member in kind},
}
# the beginning of a function's name → what there is here
_INSTEAD = {
    "llama_batch": "llcuda_ffi.Batch",
    "llama_chat": "Llama.chat and Llama.chat_prompt",
    "llama_decode": "llcuda_ffi.Context.decode",
    "llama_encode": "llcuda_ffi.Context.encode",
    "llama_get": "llcuda_ffi.Context",
    "llama_grammar": "grammar= of generate",
    "llama_kv": "llcuda_ffi.Memory",
    "llama_load_model": "llcuda_ffi.Model.load",
    "llama_log": "logging.getLogger('llcuda_ffi.native')",
    "llama_memory": "llcuda_ffi.Memory",
    "llama_model_quantize": "llcuda_ffi.quantization",
    "llama_model": "llcuda_ffi.Model",
    "llama_new_context": "llcuda_ffi.Context",
    "llama_perf": "Completion.timings and Llama.metrics()",
    "llama_sampl": "llcuda_ffi.SamplerChain",
    "llama_state": "Llama.save_state and llcuda_ffi.Context",
    "llama_token": "llcuda_ffi.Vocab",
    "llama_vocab": "llcuda_ffi.Vocab",
    "llava_": "Llama(model, mmproj=…)",
    "mtmd_": "Llama(model, mmproj=…)",
}


def llama_backend_init(numa: bool = False) -> None:
    """Nothing to do: the library is opened with the first model."""


def llama_backend_free() -> None:
    """Nothing to do."""


def llama_supports_mmap() -> bool:
    """Whether files can be mapped."""
    return True


def llama_supports_mlock() -> bool:
    """Whether they can be kept in memory."""
    return True


def llama_supports_gpu_offload() -> bool:
    """Whether this machine has a GPU that CUDA sees."""
    return bool(survey().gpus)


def __getattr__(name: str) -> Any:
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name.startswith(("llama_", "ggml_", "llava_", "mtmd_")):
        here = next(
            (what for start, what in _INSTEAD.items() if name.startswith(start)), "llcuda_ffi.Model, Context, …"
        )
        raise InvalidRequest(
            f"{name} is a function of the C library, which is not called bare: here {here} (docs/low-level.md)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
