"""The preflight of LoRA adapters: what would abort libllama while it loads one."""

from __future__ import annotations

import os

from ...errors import UnsupportedModel
from ..layout import TensorInfo
from ..reader import GGUFReader
from ..types import ValueType
from .subject import Subject
from .weights import NOT_WEIGHTS

TYPES = {
    "general.type": ValueType.STRING,
    "general.architecture": ValueType.STRING,
    "adapter.type": ValueType.STRING,
    "adapter.lora.alpha": ValueType.FLOAT32,
}


def check_adapter(path: str | os.PathLike[str]) -> None:
    """Check a LoRA adapter file before libllama sees it.

    Raises:
        ModelNotFound: no such file.
        InvalidModelFile: it is broken, or no LoRA adapter.
        UnsupportedModel: a tensor type that no kernel multiplies with.
    """
    with GGUFReader(path) as reader:
        if not reader.layout.native:
            raise UnsupportedModel(f"{path} is {reader.byte_order}-endian: convert it on this kind of machine")
        subject = Subject(reader)
        for key, kind in TYPES.items():
            found = reader.metadata.field(key)
            if found is None and kind == ValueType.FLOAT32:
                continue  # the scale is then taken as 0
            if found is None:
                subject.invalid(f"it is no LoRA adapter: {key} is missing")
            if found.type != kind:
                subject.invalid(f"{key} is {found.kind}: {kind.name.lower()} is needed")
        for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
            if subject.text(key) != wanted:
                subject.invalid(f"it is no LoRA adapter: {key} is {subject.text(key)!r} instead of {wanted!r}")
        for info in reader.tensors.values():
            _check_tensor(subject, info)


def _check_tensor(subject: Subject, info: TensorInfo) -> None:
    if info.ggml_type in NOT_WEIGHTS:
        subject.unsupported(f"tensor {info.name!r} is {info.ggml_type.name}: no kernel multiplies with it")
    if len(info.shape) > 2 and "_exps." not in info.name:
        subject.invalid(f"tensor {info.name!r} has the shape {info.shape}: it should have two dimensions")
    for end, other in ((".lora_a", ".lora_b"), (".lora_b", ".lora_a")):
        if not info.name.endswith(end):
            continue
        partner = subject.tensors.get(info.name.removesuffix(end) + other)
        if partner is None:
            subject.invalid(f"tensor {info.name!r} has no {other}")
        if info.name.startswith("token_embd.") or len(info.shape) != 2 or len(partner.shape) != 2:
            continue
        a, b = (info, partner) if end == ".lora_a" else (partner, info)
        if a.ne[1] != b.ne[0]:
            subject.invalid(f"tensors {a.name!r} {a.shape} and {b.name!r} {b.shape} have different ranks")
