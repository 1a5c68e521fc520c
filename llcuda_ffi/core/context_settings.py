"""A context's settings: what is checked of them, and the C struct that they become."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from ..enums import FlashAttnType, PoolingType
from ..errors import InvalidRequest, ModelError, UnsupportedByBundle, UnsupportedModel
from ..gguf.types import BLOCKS
from ..gguf.types import GGMLType as FileType
from ..hardware.cpu import usable_cores
from ..hardware.memory import free_system_memory
from ..native.load import Library
from ..params import ROPE_NUMBERS, ContextParams
from .memory import MemoryKind
from .model import Model

# whose layers of multi-token prediction were tried with the bundles since v0.5.0: what is wrong there aborts
MTP_ARCHITECTURES = frozenset(
    {
        "bailingmoe3",
        "cohere2moe",
        "deepseek2",
        "deepseek32",
        "glm-dsa",
        "glm4moe",
        "hy_v3",
        "mimo2",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "step35",
    }
)
SEVERAL_MTP_LAYERS = frozenset({"hy_v3", "mimo2", "step35"})  # of which the first drafts

# C++ functions with plain arguments, by the names under which they are exported
KEEP_HIDDEN = "_Z26llama_set_embeddings_nextnP13llama_contextbb"
HIDDEN = "_Z26llama_get_embeddings_nextnP13llama_context"

# the abort callback is the C library's strlen: see Context.__init__
_STRLEN = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value


def flash_attn_of(params: ContextParams, lines: list[str]) -> bool:
    """What was asked for, or what libllama's log says that AUTO became."""
    if params.flash_attn_type != FlashAttnType.AUTO:
        return params.flash_attn_type == FlashAttnType.ENABLED
    return any(re.search(r"Flash Attention .*\benabled", line) for line in lines)


def memory_kind(model: Model, params: ContextParams | None = None) -> MemoryKind:
    """What a context of a model remembers by."""
    if params is not None and params.mtp:  # these layers have attention, in hybrids too
        return MemoryKind.WINDOW if model.n_swa else MemoryKind.FULL
    if model.is_recurrent:
        return MemoryKind.RECURRENT
    if model.is_hybrid:
        return MemoryKind.HYBRID
    return MemoryKind.WINDOW if model.n_swa else MemoryKind.FULL


def check_settings(model: Model, params: ContextParams) -> None:
    """What of a context's settings would end the process, with this model and bundle.

    Raises:
        InvalidRequest, UnsupportedByBundle, UnsupportedModel, ModelError: see the single checks.
    """
    _check_sequences(model, params)
    _check_cache_types(model, params)
    _check_memory(model, params)
    _check_pooling(model, params)
    if params.mtp:
        check_mtp(model)


def _check_sequences(model: Model, params: ContextParams) -> None:
    """libllama aborts while it makes a context of an encoder-decoder model with streams of their own."""
    if model.has_encoder and model.has_decoder and params.n_seq_max > 1 and not params.kv_unified:
        raise UnsupportedModel(
            "libllama has no separate caches for the sequences of an encoder-decoder model: make the context with "
            "n_seq_max=1, or kv_unified=True"
        )


def check_mtp(model: Model) -> None:
    """Whether a model's layers of multi-token prediction can be computed: where not, libllama aborts mostly.

    Raises:
        UnsupportedByBundle: the bundle has no such contexts, or none for this architecture.
        UnsupportedModel: the model has no such layers.
        InvalidRequest: they were not loaded.
    """
    library, what = model.library, f"{model.path.name} ({model.architecture})"
    if not all(library.profile.has(name) and hasattr(library.lib, name) for name in (KEEP_HIDDEN, HIDDEN)):
        raise UnsupportedByBundle(f"{library.bundle.name} has no multi-token prediction: use v0.5.0 or a newer bundle")
    if not model.n_layer_mtp:
        raise UnsupportedModel(f"{what} has no layers of multi-token prediction, or none that libllama computes")
    if model.architecture not in MTP_ARCHITECTURES:
        raise UnsupportedModel(f"{what}: multi-token prediction is not known to work for its architecture")
    if model.n_layer_mtp > 1 and model.architecture not in SEVERAL_MTP_LAYERS:
        raise UnsupportedModel(
            f"{what} has {model.n_layer_mtp} layers of multi-token prediction: libllama takes one of this architecture"
        )
    if not model.params.load_mtp:
        raise InvalidRequest(
            f"{what} was loaded without its layers of multi-token prediction: load it with load_mtp=True"
        )
    width = int(library.lib.llama_model_n_embd_inp(model.pointer))
    if width != model.n_embd_out:
        raise UnsupportedModel(
            f"{what} takes embeddings of {width} numbers and gives {model.n_embd_out}: no multi-token prediction for it"
        )


def _check_cache_types(model: Model, params: ContextParams) -> None:
    """Older bundles abort where a head does not hold whole blocks of a quantized cache."""
    for name, head in zip(("type_k", "type_v"), _head_widths(model), strict=True):
        kind = getattr(params, name)
        size = model.library.lib.ggml_blck_size(kind.value)
        if size > 1 and head % size:
            raise InvalidRequest(
                f"{name}={kind.name} stores blocks of {size} values, which do not divide this model's heads of {head}: "
                "use F16 or BF16"
            )


def _head_widths(model: Model) -> tuple[int, int]:
    """Values of one head's key and of its value."""
    whole = model.n_embd // model.n_head if model.n_head > 0 else 0
    own = f"{model.architecture}.attention."
    key, value = (int(model.metadata.get(own + name, whole)) for name in ("key_length", "value_length"))
    return key, value


def _check_memory(model: Model, params: ContextParams) -> None:
    """A KV cache is written when it is made: the system would end a process for one that takes (nearly) all memory.

    Looked at where a cache has a row for each token in each layer, and is not on a GPU.

    Raises:
        ModelError: more than 95 % of the free memory and swap.
    """
    own = f"{model.architecture}.attention."
    heads, causal = (model.metadata.get(own + name, "") for name in ("head_count_kv", "causal"))
    plain = memory_kind(model, params) is MemoryKind.FULL and not (params.mtp or model.placement.on_gpu)
    if not plain or heads.startswith("[") or causal == "false" or own + "kv_lora_rank" in model.metadata:
        return
    if not (free := free_system_memory(swap=True)):
        return
    row = 0
    for kind, head in zip((params.type_k, params.type_v), _head_widths(model), strict=True):
        block, block_bytes = BLOCKS[FileType(kind.value)]
        row += -(-head * model.n_head_kv // block) * block_bytes
    cells = params.n_ctx or model.n_ctx_train
    seen = cells if params.kv_unified else cells // params.n_seq_max
    size = cells * model.n_layer * row + 4 * params.n_ubatch * seen  # and what masks it
    if size > free - free // 20:
        raise ModelError(
            f"a KV cache of {cells:,} tokens for {model.path.name} takes {size >> 20:,} MiB, and {free >> 20:,} MiB of "
            "memory are free: take a smaller n_ctx or n_parallel, kv_cells= for all requests together, or "
            "kv_type='q8_0' (llcuda-ffi model fit shows what fits)"
        )


def _check_pooling(model: Model, params: ContextParams) -> None:
    """Bundles since v0.5.0 abort while they plan mean pooling of a micro-batch that the sequences do not divide."""
    mean = params.pooling_type == PoolingType.MEAN
    if params.pooling_type == PoolingType.UNSPECIFIED:
        mean = model.metadata.get(f"{model.architecture}.pooling_type") == str(PoolingType.MEAN.value)
    if not mean or not model.library.profile.has("model_params.load_mode"):
        return
    n_ctx = params.n_ctx or model.n_ctx_train
    most, n = min(-(-n_ctx // 256) * 256, params.n_ubatch), params.n_seq_max
    if most % n:
        raise InvalidRequest(
            f"mean pooling needs micro-batches (n_ubatch, n_ctx at most: {most}) that are a multiple of n_seq_max "
            f"({n}): make n_ubatch {-(-most // n) * n}"
        )


def native_params(library: Library, params: ContextParams, abort_flag: Any) -> Any:
    ffi, lib, profile = library.ffi, library.lib, library.profile
    native = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
    cores = usable_cores()
    native.n_threads = params.n_threads or cores
    native.n_threads_batch = params.n_threads_batch or params.n_threads or cores
    for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max"):
        setattr(native, name, getattr(params, name))
    for name in ("embeddings", "offload_kqv", "op_offload", "no_perf", "swa_full", "kv_unified"):
        setattr(native, name, getattr(params, name))
    for name in (
        "pooling_type",
        "attention_type",
        "flash_attn_type",
        "type_k",
        "type_v",
        "rope_scaling_type",
    ):
        setattr(native, name, getattr(params, name).value)
    for name in (*ROPE_NUMBERS, "yarn_orig_ctx"):
        if getattr(params, name) is not None:
            setattr(native, name, getattr(params, name))
    for name in ("n_outputs_max", "n_rs_seq"):
        if profile.has(f"context_params.{name}"):
            setattr(native, name, getattr(params, name))
        elif name == "n_rs_seq" and params.n_rs_seq:
            raise UnsupportedByBundle(f"n_rs_seq is not in {library.bundle.name}: use the v0.5.0 bundle")
    if params.mtp:
        native.ctx_type = library.ffi.typeof("enum llama_context_type").relements["LLAMA_CONTEXT_TYPE_MTP"]
    native.abort_callback = ffi.cast("ggml_abort_callback", _STRLEN)
    native.abort_callback_data = abort_flag
    return native
