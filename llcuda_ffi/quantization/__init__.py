"""Quantization: GGUF files through libllama, a type that fits a memory target, NF4."""

from __future__ import annotations

from .dynamic import Choice, DynamicQuantizer
from .files import Quantized, QuantizePlan, plan_quantize, quantize
from .nf4 import Nf4, dequantize_nf4, quantize_nf4

__all__ = [
    "Choice",
    "DynamicQuantizer",
    "Nf4",
    "QuantizePlan",
    "Quantized",
    "dequantize_nf4",
    "plan_quantize",
    "quantize",
    "quantize_nf4",
]
