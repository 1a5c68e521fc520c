"""Merging LoRA adapters into a base model: a GGUF file that needs no adapter."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..enums import FType
from ..errors import InvalidModelFile, InvalidRequest
from ..gguf import GGMLType, GGUFReader, check_adapter
from ..gguf.writer import Encoded, Tensor, bfloat16_bits, copied_metadata, copied_tensor, write_gguf
from ..params import number
from ..quantization.files import quantize
from ..quantization.rows import ROW_TYPES, quantize_rows
from ..regular_file import replaceable
from .peft import BaseShape, LoraPair, PeftAdapter, gguf_pairs

Adapter = str | os.PathLike[str]


def merge(
    base: str | os.PathLike[str],
    adapters: Adapter | Mapping[Adapter, float],
    target: str | os.PathLike[str],
    ftype: FType | str | None = None,
) -> Path:
    """Write base + scale × B·A for every matrix that the adapters change.

    Args:
        base: the base model's GGUF file.
        adapters: a PEFT folder or a GGUF adapter; or several with their scales.
        target: the model file to write.
        ftype: quantize the result to this file type; None keeps each tensor's type (F32 where a changed tensor has
            a type that rows cannot be encoded to).

    Raises:
        ModelNotFound, InvalidModelFile, UnsupportedModel: an adapter or the base cannot be used.
        LlcudaError: the base is quantized and the package `gguf` is not installed.
    """
    final = replaceable(target)
    if final.exists() and final.samefile(base):
        raise InvalidRequest(f"the target {final} is the base itself: give another name")
    scales = adapters if isinstance(adapters, Mapping) else {adapters: 1.0}
    shape = BaseShape.of(base)
    changes: dict[str, list[LoraPair]] = {}
    for adapter, scale in scales.items():
        factor = number("an adapter's scale", scale)
        for name, pair in read_pairs(adapter, shape).items():
            changes.setdefault(name, []).append(LoraPair(pair.a, pair.b, pair.scale * factor))
    with GGUFReader(base) as reader:
        tensors: dict[str, Tensor] = {}
        for name in reader.tensors:
            tensors[name] = copied_tensor(reader, name)
            if name in changes:
                tensors[name] = _merged(reader, name, changes[name], as_f32=ftype is not None)
        if "token_embd.weight" in changes and "output.weight" not in tensors:
            # the output shared the embedding's matrix, and LoRA changed only the embedding
            original = copied_tensor(reader, "token_embd.weight")
            tensors["output.weight"] = original
        metadata = copied_metadata(reader)
        if ftype is None:
            return write_gguf(final, metadata, tensors)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.merged.gguf")
        try:
            write_gguf(temporary, metadata, tensors)
            quantize(temporary, final, ftype, allow_requantize=True)
        finally:
            temporary.unlink(missing_ok=True)
    return final


def read_pairs(adapter: Adapter, base: BaseShape) -> dict[str, LoraPair]:
    """The pairs of a PEFT folder or of a GGUF adapter, by GGUF tensor name."""
    path = Path(adapter)
    if path.is_dir():
        return gguf_pairs(PeftAdapter.read(path), base)
    check_adapter(path)
    pairs = {}
    with GGUFReader(path) as reader:
        if reader.architecture != base.architecture:
            raise InvalidModelFile(f"{path} is an adapter for {reader.architecture}, the base is {base.architecture}")
        alpha = float(reader.metadata.get("adapter.lora.alpha", 0.0))
        for key in reader.tensors:
            if not key.endswith(".lora_a"):
                continue
            name = key.removesuffix(".lora_a")
            a, b = reader.dequantize(key), reader.dequantize(name + ".lora_b")
            if name == "token_embd.weight":
                a, b = np.ascontiguousarray(b.T), a
            shape = base.tensors.get(name)
            if a.ndim != 2 or b.ndim != 2 or shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
                raise InvalidModelFile(f"{path}: {name} does not fit the base model, whose shape is {shape}")
            pairs[name] = LoraPair(a, b, alpha / a.shape[0] if alpha else 1.0)
    return pairs


def _merged(reader: GGUFReader, name: str, pairs: list[LoraPair], as_f32: bool) -> Encoded:
    info = reader.tensors[name]
    shape = tuple(info.shape[::-1])
    kind = GGMLType.F32 if as_f32 else info.ggml_type
    if kind not in (GGMLType.F32, GGMLType.F16, GGMLType.BF16) and kind.name not in ROW_TYPES:
        kind = GGMLType.F32

    def data() -> np.ndarray:
        values = reader.dequantize(name).astype(np.float32)
        for pair in pairs:
            values += np.float32(pair.scale) * (pair.b @ pair.a)
        return encode(values, kind)

    return Encoded(kind, shape, data)


def encode(values: np.ndarray, kind: GGMLType) -> np.ndarray:
    """Numbers as a tensor type stores them."""
    if kind == GGMLType.F32:
        return values.astype(np.float32)
    if kind == GGMLType.F16:
        return values.astype(np.float16)
    if kind == GGMLType.BF16:
        return bfloat16_bits(values)
    return quantize_rows(values, kind)
