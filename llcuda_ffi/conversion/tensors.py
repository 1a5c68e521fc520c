"""From tensors, or a Hugging Face model, to a GGUF file that libllama loads."""

from __future__ import annotations

import copy
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..enums import FType
from ..errors import InvalidRequest, ModelNotFound
from ..gguf import GGMLType, check
from ..gguf.types import BLOCKS
from ..gguf.writer import Encoded, Tensor, bfloat16_bits, write_gguf
from ..quantization.files import quantize
from ..quantization.rows import ROW_TYPES, quantize_rows
from ..regular_file import replaceable
from .hugging_face import run_converter


def save_gguf(
    tensors: Mapping[str, Any], metadata: Mapping[str, Any], path: str | os.PathLike[str], quant_type: str = "F16"
) -> Path:
    """Write tensors as a GGUF file.

    Args:
        tensors: GGUF name → array (numpy's order of dimensions), torch tensor on any device, or `Encoded`.
            Matrices get `quant_type`; vectors stay float32, integers stay as they are.
        metadata: as `llcuda_ffi.gguf.writer.write_gguf` takes it.
        quant_type: F32, F16, BF16 or a type of blocks (Q8_0, Q4_K, …): a matrix whose rows do not fit its blocks
            becomes F16. Or a file type (Q4_K_M, …), for the tensors of a whole model: libllama then chooses each type.

    Raises:
        InvalidRequest: no such type, or a tensor or value that GGUF cannot hold.
        ModelError, InvalidModelFile, UnsupportedModel: a file type, and the tensors are no model.
    """
    name = str(quant_type).upper()
    whole = name not in ("F32", "F16", "BF16", *ROW_TYPES)
    if whole and name not in FType.__members__:
        raise InvalidRequest(
            f"quant_type must be F32, F16, BF16, {', '.join(ROW_TYPES)} or a file type, not {name!r:.40}"
        )
    target = Path(path)
    kind = GGMLType.F32 if whole else GGMLType[name]
    encoded = {key: _encode(key, tensor, kind) for key, tensor in tensors.items()}
    if not whole:
        return write_gguf(target, metadata, encoded)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.f32.gguf")
    try:
        write_gguf(temporary, metadata, encoded)
        quantize(temporary, target, name)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def convert_to_gguf(
    model: Any, path: str | os.PathLike[str], quant_type: str = "Q4_K_M", tokenizer: Any = None
) -> Path:
    """Write a Hugging Face model as GGUF of any file type.

    Args:
        model: a folder with config.json and safetensors, or a transformers model (of a peft model, a copy is merged).
        path: the file to write.
        quant_type: a file type (FType).
        tokenizer: of a transformers model.

    Raises:
        ModelNotFound: the folder is no Hugging Face model.
        UnsupportedModel: the package that converts is not installed.
        ModelError: it cannot convert this model; the message carries its last words.
    """
    return GGUFConverter(model, tokenizer).convert(path, quant_type)


class GGUFConverter:
    """Writes a Hugging Face model as GGUF; see `convert_to_gguf`."""

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        if not isinstance(model, (str, os.PathLike)):
            if not hasattr(model, "save_pretrained"):
                raise InvalidRequest(f"a model is a folder, or has save_pretrained: not {type(model).__name__}")
            if tokenizer is None:
                raise InvalidRequest("a transformers model needs its tokenizer: GGUFConverter(model, tokenizer)")
        self.model, self.tokenizer = model, tokenizer

    def convert(self, path: str | os.PathLike[str], quant_type: str = "Q4_K_M") -> Path:
        """Write the file; it appears whole or not at all."""
        target = replaceable(path)
        kind = str(quant_type).upper()
        if kind not in FType.__members__ and kind != "F32":
            raise InvalidRequest(f"quant_type must be a file type such as Q4_K_M, not {quant_type!r:.40}")
        with tempfile.TemporaryDirectory(prefix=".llcuda-ffi-", dir=target.absolute().parent) as temporary:
            folder = Path(temporary) / "model"
            if isinstance(self.model, (str, os.PathLike)):
                folder = Path(self.model)
            else:
                model = self.model
                if hasattr(model, "merge_and_unload"):
                    model = copy.deepcopy(model).merge_and_unload()  # it would take the adapter out of the caller's
                model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
            if not (folder / "config.json").is_file():
                raise ModelNotFound(f"{folder} is no Hugging Face model: it has no config.json")
            plain = Path(temporary) / "plain.gguf"
            first = kind if kind in ("F32", "F16", "BF16") else "F32" if kind == "ALL_F32" else _own_type(folder)
            run_converter(folder, plain, first.lower())
            check(plain)
            if kind in ("F32", "F16", "BF16", "ALL_F32"):
                os.replace(plain, target)
            else:
                quantize(plain, target, kind)
        return target


def _own_type(folder: Path) -> str:
    """The type in which nothing of the weights is lost."""
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
    except OSError:
        return "F32"
    return "BF16" if '"bfloat16"' in text else "F16" if '"float16"' in text else "F32"


def _encode(name: str, tensor: Any, kind: GGMLType) -> Tensor:
    if isinstance(tensor, Encoded):
        return tensor
    if hasattr(tensor, "detach"):  # torch, without importing it
        tensor = tensor.detach().to("cpu")
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    array: np.ndarray = np.asarray(tensor)
    if array.dtype.kind != "f":
        return array
    if array.ndim < 2:
        return array.astype(np.float32)
    if kind.name in ROW_TYPES and array.shape[-1] % BLOCKS[kind][0] == 0:
        return Encoded(kind, array.shape, quantize_rows(array, kind))
    if kind == GGMLType.BF16:
        return Encoded(kind, array.shape, bfloat16_bits(array))
    with np.errstate(over="ignore"):  # seen in the next line
        plain: np.ndarray = array.astype(np.float32 if kind == GGMLType.F32 else np.float16)
    if not np.isfinite(plain).all() and np.isfinite(array).all():
        raise InvalidRequest(f"tensor {name!r} holds values beyond float16's 65504: choose F32 or BF16")
    return plain
