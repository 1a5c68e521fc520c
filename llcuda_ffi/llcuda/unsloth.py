"""llcuda's names for Unsloth: fine-tuned models and LoRA adapters become GGUF files that load."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import lora
from ..conversion.tensors import convert_to_gguf
from ..errors import InvalidRequest
from ..hub.references import resolve
from .engine import InferenceEngine


def load_unsloth_model(
    path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, max_seq_length: int = 2048
) -> InferenceEngine:
    """An engine with what Unsloth saved.

    Args:
        path: a GGUF file, or a LoRA folder (adapter_config.json), which needs `base`.
        base: the base model of a LoRA: any reference to a GGUF file.
    """
    engine = InferenceEngine()
    folder = Path(path)
    if not (folder / "adapter_config.json").is_file():
        if folder.is_dir():
            raise InvalidRequest(f"{folder} holds no LoRA: turn a whole model into GGUF with export_to_gguf() first")
        engine.load_model(path, ctx_size=max_seq_length, silent=True)
        return engine
    if base is None:
        raise InvalidRequest(f"{folder} is a LoRA adapter: give its base model as a GGUF file (base=)")
    engine.load_model(base, ctx_size=max_seq_length, silent=True)
    with tempfile.TemporaryDirectory(prefix="llcuda-ffi-") as temporary:
        adapter = lora.load(engine.llm, lora.convert(folder, resolve(base), Path(temporary) / "adapter.gguf"))
    lora.swap(engine.llm, {adapter: 1.0})
    return engine


class UnslothModelLoader:
    """`load_unsloth_model` with its settings kept."""

    def __init__(self, max_seq_length: int = 2048) -> None:
        self.max_seq_length = max_seq_length

    def load(self, path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> InferenceEngine:
        """An engine with what Unsloth saved."""
        return load_unsloth_model(path, base, self.max_seq_length)


class UnslothExporter:
    """Writes a transformers, peft or Unsloth model as GGUF; a LoRA is merged first."""

    def export(self, model: Any, tokenizer: Any, path: str | os.PathLike[str], quant_type: str = "Q4_K_M") -> Path:
        """Write the file."""
        return convert_to_gguf(model, path, quant_type, tokenizer)


def export_to_gguf(model: Any, tokenizer: Any, path: str | os.PathLike[str], quant_type: str = "Q4_K_M") -> Path:
    """Write a model (or a Hugging Face folder, with tokenizer=None) as GGUF of any file type."""
    return convert_to_gguf(model, path, quant_type, tokenizer)


export_to_llcuda = export_to_gguf
save_pretrained_llcuda = export_to_gguf


def merge_lora_adapters(
    base: str | os.PathLike[str],
    adapters: str | os.PathLike[str] | Mapping[str | os.PathLike[str], float],
    path: str | os.PathLike[str],
    quant_type: str | None = None,
) -> Path:
    """Merge LoRA adapters (PEFT folders or GGUF adapters) into a GGUF base model."""
    return lora.merge(resolve(base), adapters, path, quant_type)


class LoRAAdapter:
    """A PEFT LoRA folder and its base model."""

    def __init__(self, folder: str | os.PathLike[str], base: str | os.PathLike[str]) -> None:
        self.folder, self.base = Path(folder), resolve(base)
        self.adapter = lora.PeftAdapter.read(folder)

    def extract_adapter_weights(self) -> dict[str, Any]:
        """Module → its pair (a, b, scale)."""
        return dict(self.adapter.pairs)

    def merge(self, path: str | os.PathLike[str], quant_type: str | None = None) -> Path:
        """Write the merged model."""
        return lora.merge(self.base, self.folder, path, quant_type)

    save_merged = merge

    def save_adapter(self, path: str | os.PathLike[str]) -> Path:
        """Write the adapter as GGUF."""
        return lora.convert(self.folder, self.base, path)
