"""Names of the matrices of Hugging Face models, and what they are called in a GGUF file."""

from __future__ import annotations

import re

# the part of a module's name after "layers.N." → the part after "blk.N." in a GGUF
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.dense": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_WHOLE = {"embed_tokens": "token_embd", "lm_head": "output"}
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")

# architectures whose Q and K rows are reordered when they become GGUF, for ggml's kind of rotary embedding
PERMUTED = ("llama", "mistral", "granite", "deci", "llama4")
# architectures for which the names above hold
KNOWN = (
    "llama", "mistral", "granite", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "phi2", "smollm3", "olmo2",
    "stablelm", "starcoder2", "exaone", "internlm2", "glm4", "seed_oss", "ernie4_5",
)  # fmt: skip


def gguf_name(module: str) -> str | None:
    """The tensor of a module, e.g. "model.layers.0.self_attn.q_proj" → "blk.0.attn_q.weight"; None if unknown."""
    found = _LAYER.search(module)
    if found is not None:
        name = _BLOCK.get(found[2])
        return None if name is None else f"blk.{int(found[1])}.{name}.weight"
    whole = _WHOLE.get(module.rpartition(".")[2])
    return None if whole is None else f"{whole}.weight"
