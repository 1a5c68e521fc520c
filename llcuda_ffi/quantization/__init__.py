"""Quantization: GGUF files through libllama, a type that fits a memory target, NF4, and tensors written as GGUF."""

from __future__ import annotations

from ..core.quantize import Quantized, QuantizePlan, plan_quantize, quantize
from .dynamic import Choice, DynamicQuantizer
from .export import GGUFConverter, convert_to_gguf, save_gguf
from .nf4 import Nf4, dequantize_nf4, quantize_nf4

__all__ = [
    "Choice",
    "DynamicQuantizer",
    "GGUFConverter",
    "Nf4",
    "QuantizePlan",
    "Quantized",
    "convert_to_gguf",
    "dequantize_nf4",
    "plan_quantize",
    "quantize",
    "quantize_nf4",
    "save_gguf",
]
