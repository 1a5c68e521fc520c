"""What CUDA's kernels are compiled for: they say that they take any size, and end the process at others.

Only here: libggml's other checks of this kind are answered by the CPU's computing that operation.
"""

from __future__ import annotations

import re

from .subject import Subject

# architectures with a gated delta net, by where the size of its state's heads stands
_SHARED_OUT = frozenset({"qwen35", "qwen35moe", "qwen3next", "qwen4exp"})  # ssm.inner_size / ssm.time_step_rank
_NAMED = frozenset({"bailingmoe3", "glm5-next", "kimi-k3", "kimi-linear"})  # kda.head_dim
_STATES = (16, 32, 64, 128)
_RWKV = frozenset({"arwkv7", "rwkv6", "rwkv6qwen2", "rwkv7"})
_HEADS = (64, 128)
_CONVOLUTION = re.compile(r"blk\.\d+\.(ssm_conv1d(_[qkv])?|shortconv\.conv)\.weight")
_KERNELS = (3, 4, 5, 9, 15)
_CHANNELS = 128  # others than multiples of that are computed by the CPU


def not_on_cuda(subject: Subject) -> str:
    """Why a model cannot be computed on CUDA; "" where nothing is known against it."""
    architecture = subject.architecture
    if architecture in _SHARED_OUT:
        inner, heads = subject.u32("ssm.inner_size"), subject.u32("ssm.time_step_rank")
        if inner and heads and inner // heads not in _STATES:
            shares = f"{subject.key('ssm.inner_size')} {inner} / ssm.time_step_rank {heads}"
            return _other(f"its linear attention has a state of {inner // heads} ({shares})", _STATES)
    for names, key, sizes in ((_NAMED, "kda.head_dim", _STATES), (_RWKV, "wkv.head_size", _HEADS)):
        size = subject.u32(key)
        if architecture in names and size and size not in sizes:
            return _other(f"{subject.key(key)} is {size}", sizes)
    for name, info in subject.tensors.items():
        width = info.ne[0]
        if _CONVOLUTION.fullmatch(name) and width not in _KERNELS and info.numel // width % _CHANNELS == 0:
            return _other(f"the convolution {name!r} is {width} wide", _KERNELS)
    return ""


def _other(what: str, sizes: tuple[int, ...]) -> str:
    return f"{what}, and CUDA's kernels end the process at other sizes than {', '.join(map(str, sizes))}"
