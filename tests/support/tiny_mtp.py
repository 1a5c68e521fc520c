"""Tiny models with layers of multi-token prediction (MTP), which draft."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .tiny_architectures import (
    ATTENTION,
    EMBD,
    FF,
    GATED,
    HEAD,
    HEAD_NORMS,
    HEADS,
    HEADS_KV,
    KV,
    LAYERS,
    _add_layer,
    _start,
    tiny_deepseek2,
    tiny_qwen35,
)
from .tiny_model import F32, TinyFile

NEXTN = {
    "nextn.eh_proj.weight": (2 * EMBD, EMBD),
    "nextn.enorm.weight": (EMBD,),
    "nextn.hnorm.weight": (EMBD,),
    "nextn.shared_head_norm.weight": (EMBD,),
}
EXPERTS = {
    "ffn_gate_inp.weight": (EMBD, 4), "exp_probs_b.bias": (4,), "ffn_gate_exps.weight": (EMBD, FF, 4),
    "ffn_up_exps.weight": (EMBD, FF, 4), "ffn_down_exps.weight": (FF, EMBD, 4),
    "ffn_gate_shexp.weight": (EMBD, FF), "ffn_up_shexp.weight": (EMBD, FF), "ffn_down_shexp.weight": (FF, EMBD),
}  # fmt: skip


def tiny_qwen35_mtp(heads: int = 1) -> TinyFile:
    """`tiny_qwen35`, a hybrid, with a fifth layer that drafts."""
    file = tiny_qwen35()
    attention = {k: v for k, v in ATTENTION.items() if k != "ffn_norm.weight"}
    attention["attn_q.weight"] = (EMBD, 2 * EMBD)
    for i in range(heads):
        shapes = {**attention, **HEAD_NORMS, **GATED, **NEXTN, "post_attention_norm.weight": (EMBD,)}
        _add_layer(file, 4 + i, shapes)
    file.metadata["qwen35.block_count"] = 4 + heads
    file.metadata["qwen35.nextn_predict_layers"] = heads
    return file


def tiny_glm4moe(layers: int = 2) -> TinyFile:
    """Full attention, one dense layer, experts in the others, of which the last drafts."""
    file = _start(
        "glm4moe", block_count=layers + 1, nextn_predict_layers=1, leading_dense_block_count=1, expert_count=4,
        expert_used_count=2, expert_shared_count=1, expert_feed_forward_length=FF, expert_gating_func=2,
        rope__dimension_count=HEAD, attention__key_length=HEAD, attention__value_length=HEAD,
    )  # fmt: skip
    parts = {k: v for k, v in ATTENTION.items() if k != "ffn_norm.weight"}
    parts |= {"post_attention_norm.weight": (EMBD,)}
    parts |= {"attn_q.bias": (EMBD,), "attn_k.bias": (KV,), "attn_v.bias": (KV,)}
    for i in range(layers + 1):
        _add_layer(file, i, {**parts, **(EXPERTS if i else GATED), **(NEXTN if i == layers else {})})
    return file


def tiny_deepseek2_mtp() -> TinyFile:
    """`tiny_deepseek2`, latent attention, with a third layer that drafts."""
    file = tiny_deepseek2()
    file.metadata |= {
        "deepseek2.block_count": LAYERS + 1, "deepseek2.nextn_predict_layers": 1, "deepseek2.expert_count": 4,
        "deepseek2.expert_used_count": 2, "deepseek2.expert_gating_func": 2,
    }  # fmt: skip
    like = {k.removeprefix("blk.0."): ne for k, (ne, _, _) in file.tensors.items() if k.startswith("blk.0.")}
    attention = {k: ne for k, ne in like.items() if k not in GATED}
    _add_layer(file, LAYERS, {**attention, **EXPERTS, **NEXTN})
    return file


def tiny_step35(heads: int = 2) -> TinyFile:
    """A sliding window in every second layer, and several layers that draft."""
    layers = 4 + heads
    file = _start(
        "step35", block_count=layers, nextn_predict_layers=heads, leading_dense_block_count=layers, expert_count=4,
        expert_used_count=2, expert_feed_forward_length=FF, expert_shared_feed_forward_length=FF, expert_gating_func=2,
        attention__sliding_window=32, attention__sliding_window_pattern=[1, 0, 1, 0] + [1] * heads,
        attention__key_length=HEAD, attention__value_length=HEAD, rope__dimension_count=HEAD,
        rope__freq_base_swa=10000.0, attention__head_count=[HEADS] * layers,
        attention__head_count_kv=[HEADS_KV] * layers,
    )  # fmt: skip
    for i in range(layers):
        shapes = {**ATTENTION, **HEAD_NORMS, **GATED, "attn_gate.weight": (EMBD, HEADS)}
        _add_layer(file, i, {**shapes, **(NEXTN if i >= 4 else {})})
    return file


def agreeing(file: TinyFile, cycle: Sequence[int], wrong: Sequence[int] = ()) -> TinyFile:
    """The same with weights by which each token of a cycle is followed by the next, and MTP layers that say so.

    Nothing but the embedding of the last token counts. The MTP layers see only the hidden state of the token before
    theirs, so they are right only where each gets its own.

    Args:
        cycle: at most as many tokens as the model is wide.
        wrong: tokens of it after whose hidden state they are wrong.
    """
    for name, (ne, kind, raw) in file.tensors.items():
        if name.startswith("blk.") and any(part in name for part in ("attn_output", "ssm_out", "ffn_down")):
            file.tensors[name] = ne, kind, bytes(len(raw))
    rng = np.random.default_rng(5)
    ne, _, raw = file.tensors["token_embd.weight"]
    embedding = rng.standard_normal((ne[1], EMBD)).astype(np.float32)
    embedding *= (EMBD / (embedding**2).sum(1, keepdims=True)) ** 0.5
    following = [*cycle[1:], cycle[0]]
    output = np.zeros_like(embedding)
    output[following] = embedding[list(cycle)]
    file.tensors["token_embd.weight"] = ne, F32, embedding.tobytes()
    file.tensors["output.weight"] = ne, F32, output.tobytes()
    said = [cycle[0] if token in wrong else then for token, then in zip(cycle, following, strict=True)]
    step = embedding[said].T @ np.linalg.pinv(embedding[list(cycle)].T)
    for name, (ne, kind, _) in file.tensors.items():
        if name.endswith("eh_proj.weight"):
            both = np.concatenate((np.zeros_like(step), step), axis=1)
            file.tensors[name] = ne, kind, both.astype(np.float32).tobytes()
    return file


CYCLE = tuple(range(10, 100, 4))
