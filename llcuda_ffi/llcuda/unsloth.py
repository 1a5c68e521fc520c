"""llcuda's names for Unsloth: fine-tuned models and LoRA adapters become GGUF files that load."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import lora
from ..conversion.tensors import convert_to_gguf
from ..errors import InvalidRequest
from ..fetch.cache import cache_root, folder
from ..fetch.progress import note
from ..gguf import GGMLType, GGUFReader
from ..gguf.types import BLOCKS
from ..hub.references import resolve
from ..params import flag
from ..quantization.files import quantize
from .engine import InferenceEngine

_4_BITS = 5  # and a scale for each block: Q4_K has 4.5 bits a weight, Q4_1 5


def load_unsloth_model(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    max_seq_length: int = 2048,
    load_in_4bit: bool = False,
) -> InferenceEngine:
    """An engine with what Unsloth saved.

    Args:
        path: a GGUF file, or a LoRA folder (adapter_config.json), which needs `base`.
        base: the base model of a LoRA: any reference to a GGUF file.
        load_in_4bit: of a file with more bits a weight take a copy in Q4_K_M, which is made once, in the cache.
    """
    engine = InferenceEngine()
    place = Path(path)
    is_lora = (place / "adapter_config.json").is_file()
    if place.is_dir() and not is_lora:
        raise InvalidRequest(f"{place} holds no LoRA: turn a whole model into GGUF with export_to_gguf() first")
    if is_lora and base is None:
        raise InvalidRequest(f"{place} is a LoRA adapter: give its base model as a GGUF file (base=)")
    model = path if base is None or not is_lora else base
    engine.load_model(_in_4_bits(resolve(model)) if load_in_4bit else model, ctx_size=max_seq_length, silent=True)
    if not is_lora:
        return engine
    assert base is not None
    with tempfile.TemporaryDirectory(prefix="llcuda-ffi-") as temporary:
        adapter = lora.load(engine.llm, lora.convert(place, resolve(base), Path(temporary) / "adapter.gguf"))
    lora.swap(engine.llm, {adapter: 1.0})
    return engine


def _in_4_bits(path: Path) -> Path:
    """The file, if most of its weights have about 4 bits; else a copy of that type in the cache."""
    with GGUFReader(path) as reader:
        weights: Counter[GGMLType] = Counter()
        for tensor in reader.tensors.values():
            weights[tensor.ggml_type] += tensor.numel
    numbers, size = BLOCKS[weights.most_common(1)[0][0]]
    if size * 8 / numbers <= _4_BITS:
        return path
    about = path.stat()
    key = hashlib.sha256(f"{path.absolute()} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:12]
    kept = folder(cache_root() / "quantized") / f"{path.stem}-Q4_K_M-{key}.gguf"
    if not kept.is_file():
        note(f"writing {kept}: {path.name} in 4 bits a weight (load_in_4bit=False takes it as it is)")
        quantize(path, kept, "Q4_K_M", allow_requantize=True)
    return kept


class UnslothModelLoader:
    """`load_unsloth_model` with its settings kept."""

    def __init__(self, max_seq_length: int = 2048, load_in_4bit: bool = True) -> None:
        self.max_seq_length, self.load_in_4bit = max_seq_length, flag("load_in_4bit", load_in_4bit)

    def load(self, path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> InferenceEngine:
        """An engine with what Unsloth saved."""
        return load_unsloth_model(path, base, self.max_seq_length, self.load_in_4bit)


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
