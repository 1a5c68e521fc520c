"""LoRA: adapters of PEFT and Unsloth turned into GGUF, swapped on a running model, merged into it."""

from __future__ import annotations

from .apply import applied, load, swap
from .merge import merge
from .peft import LoraPair, PeftAdapter, convert

__all__ = ["LoraPair", "PeftAdapter", "applied", "convert", "load", "merge", "swap"]
