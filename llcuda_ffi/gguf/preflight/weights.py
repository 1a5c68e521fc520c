"""Rules about tensors: types that the kernels take, by what the tensor is used for."""

from __future__ import annotations

import re

from ..layout import TensorInfo
from ..types import GGMLType
from .architectures import NEEDS, NEEDS_ONE_OF
from .subject import Subject

# no kernel multiplies with these: integers, doubles, and the types that activations are packed into
NOT_WEIGHTS = frozenset(
    {GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64, GGMLType.Q8_1, GGMLType.Q8_K}
)
# added or multiplied element by element, or read by kernels that only take float32
ELEMENTWISE = re.compile(
    r"\.bias$|\.scale$|norm(_\d)?\.weight$|^token_types\.weight$|ssm_conv1d|shortconv\.conv|ssm_[ad]$"
    r"|time_mix_(first|decay|lerp\w*)\.weight$|attn_sinks|rope_(freqs|factors\w*)\.weight$"
)
# the most dimensions of a tensor; some versions look only at as many as they expect
DIMENSIONS = (
    (re.compile(r"(attn|ffn|output|embd|attention|ffw)_norm\.weight$|(?<!_exps)\.bias$"), 1),
    (re.compile(r"(attn_(q|k|v|qkv|output)|ffn_(gate|up|down|gate_inp)|_shexp|^output)\.weight$"), 2),
    (re.compile(r"attn_rel_b\.weight$|ssm_(a|(in|x|dt|out|conv1d)\.weight)$"), 2),
    (re.compile(r"^(token_embd|token_types|position_embd)\.weight$|_exps\.bias$"), 2),
    (re.compile(r"_exps\.weight$"), 3),
)
# tables of numbers
TABLE = re.compile(r"tid2eid|d2t|t2d")


def check_types(subject: Subject) -> None:
    """Refuse tensor types that no kernel takes.

    Raises:
        UnsupportedModel: a tensor of such a type.
    """
    for info in subject.tensors.values():
        for pattern, most in DIMENSIONS:
            if len(_sizes(info)) > most and pattern.search(info.name):
                subject.invalid(f"tensor {info.name!r} has the shape {info.shape}: {most} dimensions are possible")
        if TABLE.search(info.name):
            continue
        if info.n_dims <= 1 or ELEMENTWISE.search(info.name):
            if info.ggml_type != GGMLType.F32:
                subject.unsupported(f"tensor {info.name!r} is {info.ggml_type.name}: the kernels need F32 there")
        elif info.ggml_type in NOT_WEIGHTS:
            subject.unsupported(f"tensor {info.name!r} is {info.ggml_type.name}: no kernel multiplies with it")


def check_complete(subject: Subject) -> None:
    """Refuse a model in one file that lacks tensors which libllama uses without looking for them.

    Raises:
        InvalidModelFile: such a tensor is missing.
    """
    if not subject.tensors:
        return
    for name in NEEDS.get(subject.architecture, ()):
        if name not in subject.tensors:
            subject.invalid(f"{subject.architecture} needs the tensor {name!r}, which is missing")
    choices = NEEDS_ONE_OF.get(subject.architecture)
    if choices is None:
        return
    for i in range(subject.u32("block_count") or 0):
        prefix = f"blk.{i}."
        if not any(all(f"{prefix}{name}.weight" in subject.tensors for name in choice) for choice in choices):
            wanted = " or ".join("+".join(choice) for choice in choices)
            subject.invalid(f"block {i} lacks tensors: {subject.architecture} needs {wanted}")


def _sizes(info: TensorInfo) -> tuple[int, ...]:
    """The shape without trailing ones."""
    shape = info.shape
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
