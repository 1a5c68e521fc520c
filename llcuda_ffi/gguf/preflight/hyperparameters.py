"""Rules about hyperparameters: values that libllama asserts on, and values that do not fit each other."""

from __future__ import annotations

import math

from ..types import ValueType
from .architectures import (
    FULL_EVERY,
    NEEDS_TARGET,
    NO_ATTENTION,
    NO_ROPE,
    OWN_OUTPUT_WIDTH,
    SAME_KEY_AND_VALUE,
    WHOLE_HEAD_ROTATES,
)
from .subject import Subject

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 512  # LLAMA_MAX_EXPERTS of the oldest supported build
MORE_EXPERTS = {"kimi-k3": 1024}  # architectures that only builds with a higher limit know
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
POOLINGS = (0, 1, 2, 3, 4, 0xFFFFFFFF)  # enum llama_pooling_type, the last one is UNSPECIFIED
WHOLE = ("_count", "_count_kv", "_length", "_sections", "_pattern")  # ends of keys of whole numbers
NUMBERS = (*WHOLE, "alpha_n", "alpha_p", "beta", "eps", "clamp_exp", "clamp_shexp", "_ratios", "_mapping")
EPSILONS = ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon")


def check_hyperparameters(subject: Subject) -> None:
    """Refuse hyperparameters that libllama aborts on.

    Raises:
        InvalidModelFile: a value out of its range, or not fitting another.
        UnsupportedModel: an architecture that cannot run by itself.
    """
    if subject.architecture in NEEDS_TARGET:
        subject.unsupported(f"{subject.architecture} is a draft that only runs beside the model it was made for")
    layers = subject.u32("block_count")
    if layers is None:
        return  # libllama refuses it by itself, and a file with only a vocabulary has none
    if not 0 < layers <= MAX_LAYERS:
        subject.invalid(f"{subject.key('block_count')} is {layers}: 1 to {MAX_LAYERS} is possible")
    every = FULL_EVERY.get(subject.architecture, 0)
    if layers < every and subject.u32("attention.sliding_window"):
        subject.unsupported(
            f"{subject.key('block_count')} is {layers}: {subject.architecture} with a sliding window needs {every}"
        )
    extra = subject.u32("nextn_predict_layers")
    if extra is not None and extra > layers:
        subject.invalid(f"{subject.key('nextn_predict_layers')} is {extra}, more than block_count {layers}")
    _check_choices(subject)
    _check_arrays(subject)
    _check_experts(subject, layers)
    _check_heads(subject, layers)


def _check_choices(subject: Subject) -> None:
    scaling = subject.text(subject.key("rope.scaling.type"))
    if scaling is not None and scaling not in ROPE_SCALINGS:
        subject.unsupported(
            f"{subject.key('rope.scaling.type')} is {scaling!r}: libllama knows {', '.join(ROPE_SCALINGS)}"
        )
    pooling = subject.u32("pooling_type")
    if pooling is not None and pooling not in POOLINGS:
        subject.unsupported(f"{subject.key('pooling_type')} is {pooling}: 0 to 4 exist")
    for name in EPSILONS:
        epsilon = subject.f32(f"attention.{name}")
        if epsilon is not None and not (epsilon >= 0 and math.isfinite(epsilon)):
            subject.invalid(f"{subject.key('attention.' + name)} is {epsilon}: it must be a positive number")
    width, out = subject.u32("embedding_length"), subject.u32("embedding_length_out")
    if out and width and out > width and subject.architecture not in OWN_OUTPUT_WIDTH:
        subject.invalid(
            f"{subject.key('embedding_length_out')} is {out}: {subject.architecture} gives {width} (embedding_length)"
        )


def _check_arrays(subject: Subject) -> None:
    """Some versions assert on the item type of arrays."""
    for key in subject.metadata:
        field = subject.metadata.field(key)
        if field is None or field.item_type is None or not key.startswith(subject.architecture + "."):
            continue
        if field.item_type == ValueType.STRING and key.endswith(NUMBERS):
            subject.invalid(f"{key} is {field.kind}: numbers are needed")
        if field.item_type != ValueType.STRING and key.endswith("classifier.output_labels"):
            subject.invalid(f"{key} is {field.kind}: an array of string is needed")
        if field.item_type == ValueType.FLOAT32 and key.endswith(WHOLE):
            subject.invalid(f"{key} is {field.kind}: an array of uint32 is needed")


def _check_experts(subject: Subject, layers: int) -> None:
    experts = subject.u32("expert_count") or 0
    each = subject.per_layer("expert_used_count", layers) or [0]
    used = max(each)
    groups = subject.u32("expert_group_count") or 0
    chosen = subject.u32("expert_group_used_count") or 0
    key = subject.key("expert_used_count")
    if subject.architecture in ("hunyuan_vl", "hunyuan-dense") and experts <= 1:
        return
    most = MORE_EXPERTS.get(subject.architecture, MAX_EXPERTS)
    if experts > most:
        subject.unsupported(f"{subject.key('expert_count')} is {experts}: libllama takes {most} at most")
    if used > experts:
        subject.invalid(f"{key} is {used}, more than expert_count {experts}")
    if experts and not used:
        subject.invalid(f"{key} is missing or 0 with {experts} experts")
    if len(set(each)) > 1 and not subject.architecture.startswith("nemotron_h"):
        subject.unsupported(f"{key} differs by layer: libllama takes the first layer's for {subject.architecture}")
    for i, n in enumerate(each):
        if used and not n and f"blk.{i}.ffn_gate_inp.weight" in subject.tensors:
            subject.invalid(f"{key} of layer {i} is 0, and the layer has experts")
    uneven = groups > 1 and experts and (experts % groups or not 0 < chosen < groups)
    if groups and (groups >= experts or uneven):
        subject.invalid(
            f"{subject.key('expert_group_count')} is {groups}, of which {chosen} are used: "
            f"they must divide the {experts} experts"
        )


def _check_heads(subject: Subject, layers: int) -> None:
    """Heads, their sizes and the rotated part of them."""
    width = subject.u32("embedding_length")
    heads = subject.per_layer("attention.head_count", layers)
    if heads is None or width is None:
        return
    heads_kv = subject.per_layer("attention.head_count_kv", layers)
    for i, (n, n_kv) in enumerate(zip(heads, heads_kv or heads, strict=True)):
        if n_kv and n % n_kv:
            subject.invalid(
                f"{subject.key('attention.head_count')} {n} of layer {i} is no multiple of head_count_kv {n_kv}"
            )
    if not any(heads) and subject.architecture not in NO_ATTENTION:
        subject.invalid(f"{subject.key('attention.head_count')} is 0: {subject.architecture} needs heads")
    if not heads[0]:
        return
    size_k = subject.u32("attention.key_length")
    size_v = subject.u32("attention.value_length")
    size_k = width // heads[0] if size_k is None else size_k
    size_v = width // heads[0] if size_v is None else size_v
    if not size_k or not size_v:
        subject.invalid(
            f"the heads have no size: {subject.key('embedding_length')} {width}, head_count {heads[0]}, "
            f"key_length {size_k}, value_length {size_v}"
        )
    if heads_kv is not None and len(set(heads_kv)) > 1 and subject.u32("attention.kv_lora_rank") is None:
        _check_layers(subject, heads, heads_kv, size_k, size_v)
    architecture = subject.architecture
    if architecture in SAME_KEY_AND_VALUE and size_k != size_v:
        subject.invalid(
            f"{subject.key('attention.key_length')} {size_k} and value_length {size_v} differ: "
            f"{architecture} needs them equal"
        )
    rotated = subject.u32("rope.dimension_count")
    rotated = size_k if rotated is None else rotated
    if architecture in WHOLE_HEAD_ROTATES and rotated != size_k:
        subject.invalid(
            f"{subject.key('rope.dimension_count')} is {rotated}: {architecture} needs the head size {size_k}"
        )
    if architecture not in NO_ROPE and (rotated % 2 or rotated > size_k):
        subject.invalid(
            f"{subject.key('rope.dimension_count')} is {rotated}: it must be even and at most the head size {size_k}"
        )


def _check_layers(subject: Subject, heads: list[int], heads_kv: list[int], size_k: int, size_v: int) -> None:
    """Where layers differ in heads, so must their tensors: some architectures size all by the first layer."""
    swa = subject.u32("attention.key_length_swa") or size_k
    for i, (n, n_kv) in enumerate(zip(heads, heads_kv, strict=True)):
        wanted = {
            f"blk.{i}.attn_k.weight": {n_kv * size_k, n_kv * swa},
            f"blk.{i}.attn_qkv.weight": {n * size_k + n_kv * (size_k + size_v), n * swa + n_kv * 2 * swa},
        }
        for name, rows in wanted.items():
            info = subject.tensors.get(name)
            if info is not None and n and info.ne[1] not in rows:
                subject.invalid(
                    f"tensor {name!r} has the shape {info.shape}: "
                    f"{subject.key('attention.head_count_kv')} of layer {i} is {n_kv}"
                )
