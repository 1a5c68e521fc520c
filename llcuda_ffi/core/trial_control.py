"""A model that is known to be sound, for trials: where it ends the process too, the file tried is not to blame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..gguf.types import ValueType
from ..gguf.writer import Typed, write_gguf

_EMBD, _FF, _VOCAB = 32, 32, 64


def write_control(path: Path) -> None:
    """Write it: a llama of one layer, without a vocabulary, all of whose weights are equal."""

    def u32(value: int) -> Typed:
        return Typed(value, ValueType.UINT32)

    metadata = {
        "general.architecture": "llama",
        "llama.vocab_size": u32(_VOCAB),
        "llama.context_length": u32(512),
        "llama.embedding_length": u32(_EMBD),
        "llama.block_count": u32(1),
        "llama.feed_forward_length": u32(_FF),
        "llama.attention.head_count": u32(1),
        "llama.attention.layer_norm_rms_epsilon": Typed(1e-5, ValueType.FLOAT32),
        "tokenizer.ggml.model": "none",
    }

    def matrix(rows: int, columns: int = _EMBD) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.full((rows, columns), 0.01, np.float32)

    tensors = {"token_embd.weight": matrix(_VOCAB), "output_norm.weight": np.ones(_EMBD, np.float32)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensors[f"blk.0.{name}.weight"] = matrix(_EMBD)
    for name in ("attn_norm", "ffn_norm"):
        tensors[f"blk.0.{name}.weight"] = np.ones(_EMBD, np.float32)
    tensors["blk.0.ffn_gate.weight"] = tensors["blk.0.ffn_up.weight"] = matrix(_FF)
    tensors["blk.0.ffn_down.weight"] = matrix(_EMBD, _FF)
    write_gguf(path, metadata, tensors)
