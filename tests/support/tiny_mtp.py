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


def tiny_deepseek32_mtp(architecture: str = "deepseek32") -> TinyFile:
    """`tiny_deepseek2_mtp` with an indexer in each layer, which says what the others attend to; or "glm-dsa"."""
    plain, heads, head = tiny_deepseek2_mtp(), 16, 64
    file = TinyFile({k.replace("deepseek2.", f"{architecture}."): v for k, v in plain.metadata.items()}, plain.tensors)
    file.metadata |= {
        "general.architecture": architecture, f"{architecture}.attention.indexer.head_count": heads,
        f"{architecture}.attention.indexer.key_length": head, f"{architecture}.attention.indexer.top_k": 16,
    }  # fmt: skip
    rank_q = plain.tensors["blk.0.attn_q_a_norm.weight"][0][0]
    for i in range(LAYERS + 1):
        _add_layer(file, i, {
            "indexer.k_norm.weight": (head,), "indexer.k_norm.bias": (head,), "indexer.proj.weight": (EMBD, heads),
            "indexer.attn_k.weight": (EMBD, head), "indexer.attn_q_b.weight": (rank_q, heads * head),
        })  # fmt: skip
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


def tiny_qwen3next_mtp(architecture: str = "qwen3next") -> TinyFile:
    """`tiny_qwen35_mtp` with experts in each layer; as "qwen35moe" with that one's names."""
    dense, own = tiny_qwen35_mtp(), architecture == "qwen35moe"
    file = TinyFile({k.replace("qwen35.", f"{architecture}."): v for k, v in dense.metadata.items()})
    file.metadata |= {
        "general.architecture": architecture, f"{architecture}.expert_count": 4,
        f"{architecture}.expert_used_count": 2, f"{architecture}.expert_feed_forward_length": FF,
        f"{architecture}.expert_shared_feed_forward_length": FF,
    }  # fmt: skip
    if not own:
        del file.metadata["qwen3next.rope.dimension_sections"]
    experts = {k: ne for k, ne in EXPERTS.items() if "probs" not in k} | {"ffn_gate_inp_shexp.weight": (EMBD,)}
    for name, tensor in dense.tensors.items():
        if ".ffn_" in name or (not own and ".ssm_beta" in name):
            continue
        if ".ssm_alpha" in name and not own:  # both in one
            ne = tensor[0]
            file.add(name.replace("ssm_alpha", "ssm_ba"), (ne[0], 2 * ne[1]), np.random.default_rng(6))
        else:
            file.tensors[name] = tensor
    for i in range(5):
        _add_layer(file, i, experts)
    return file


def tiny_mimo2(heads: int = 2) -> TinyFile:
    """A sliding window in every second layer, q, k and v in one matrix, and several layers that draft."""
    layers = 4 + heads
    file = _start(
        "mimo2", block_count=layers, nextn_predict_layers=heads, expert_feed_forward_length=FF,
        attention__sliding_window=32, attention__sliding_window_pattern=[1, 0, 1, 0] + [1] * heads,
        attention__key_length=HEAD, attention__value_length=HEAD, rope__dimension_count=HEAD,
    )  # fmt: skip
    file.add("output.weight", file.tensors["token_embd.weight"][0], np.random.default_rng(2))
    apart = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
    shapes = {k: ne for k, ne in ATTENTION.items() if k not in apart} | GATED
    shapes["attn_qkv.weight"] = (EMBD, EMBD + 2 * KV)
    for i in range(layers):
        _add_layer(file, i, {**shapes, **(NEXTN if i >= 4 else {})})
    return file


def tiny_cohere2moe() -> TinyFile:
    """A sliding window in three of four layers, attention and experts beside each other, the last layer drafts."""
    file = _start(
        "cohere2moe", block_count=5, nextn_predict_layers=1, leading_dense_block_count=1, expert_count=4,
        expert_used_count=2, expert_shared_count=1, expert_feed_forward_length=FF, logit_scale=1.0,
        attention__sliding_window=32, attention__key_length=HEAD, attention__value_length=HEAD,
        rope__dimension_count=HEAD,
    )  # fmt: skip
    attention = {k: ne for k, ne in ATTENTION.items() if k != "ffn_norm.weight"}
    experts = {k: ne for k, ne in EXPERTS.items() if "probs" not in k}
    for i in range(5):
        _add_layer(file, i, {**attention, **(experts if i else GATED), **(NEXTN if i == 4 else {})})
    return file


def tiny_hy_v3(heads: int = 2) -> TinyFile:
    """Full attention, experts in all layers but the first, and several layers that draft."""
    layers = LAYERS + heads
    file = _start(
        "hy_v3", block_count=layers, nextn_predict_layers=heads, expert_count=4, expert_used_count=2,
        expert_feed_forward_length=FF, expert_shared_feed_forward_length=FF, rope__dimension_count=HEAD,
        attention__key_length=HEAD, attention__value_length=HEAD,
    )  # fmt: skip
    experts = {k.replace("exp_probs_b.bias", "exp_probs_b"): ne for k, ne in EXPERTS.items()}
    for i in range(layers):
        shapes = {**ATTENTION, **HEAD_NORMS, **(experts if i else GATED)}
        _add_layer(file, i, {**shapes, **(NEXTN if i >= LAYERS else {})})
    return file


def tiny_nemotron_h_moe() -> TinyFile:
    """Mamba 2, attention and experts in layers of their own, and one with both that drafts."""
    inner, state, rank = 2 * EMBD, 8, 4
    file = _start(
        "nemotron_h_moe", block_count=4, nextn_predict_layers=1, attention__head_count_kv=[0, HEADS_KV, 0, HEADS_KV],
        feed_forward_length=[0, 0, FF, FF], expert_count=4, expert_used_count=2, expert_shared_count=1,
        expert_feed_forward_length=FF, expert_shared_feed_forward_length=FF, attention__layer_norm_epsilon=1e-5,
        attention__key_length=HEAD, attention__value_length=HEAD, ssm__conv_kernel=4, ssm__inner_size=inner,
        ssm__state_size=state, ssm__time_step_rank=rank, ssm__group_count=1,
    )  # fmt: skip
    mixed = inner + 2 * state
    mamba = {
        "attn_norm.weight": (EMBD,), "ssm_in.weight": (EMBD, inner + mixed + rank),
        "ssm_conv1d.weight": (4, mixed), "ssm_conv1d.bias": (mixed,), "ssm_dt.bias": (rank,), "ssm_a": (1, rank),
        "ssm_d": (1, rank), "ssm_norm.weight": (inner, 1), "ssm_out.weight": (inner, EMBD),
    }  # fmt: skip
    attention = {k: ne for k, ne in ATTENTION.items() if k != "ffn_norm.weight"}
    experts = {k: ne for k, ne in EXPERTS.items() if k not in ("ffn_gate_exps.weight", "ffn_gate_shexp.weight")}
    _add_layer(file, 0, mamba)
    _add_layer(file, 1, attention)
    _add_layer(file, 2, {"attn_norm.weight": (EMBD,), **experts})
    _add_layer(file, 3, {**attention, "post_attention_norm.weight": (EMBD,), **experts, **NEXTN})
    return file


def tiny_bailingmoe3() -> TinyFile:
    """Kimi delta attention, then latent attention, then a layer of latent attention that drafts."""
    head, rank, rope, plain, rank_q = 8, 16, 4, 8, 12
    inner = head * HEADS
    file = _start(
        "bailingmoe3", block_count=LAYERS + 1, nextn_predict_layers=1, attention__head_count_kv=[0, 1, 1],
        attention__key_length=rank + rope, attention__value_length=rank, attention__key_length_mla=plain + rope,
        attention__value_length_mla=HEAD, attention__kv_lora_rank=rank, attention__q_lora_rank=rank_q,
        rope__dimension_count=rope, ssm__conv_kernel=4, kda__head_dim=head, kda__gate_lower_bound=-5.0,
        leading_dense_block_count=1, expert_count=4, expert_used_count=2, expert_shared_count=1,
        expert_feed_forward_length=FF, expert_gating_func=2,
    )  # fmt: skip
    norms = {"attn_norm.weight": (EMBD,), "ffn_norm.weight": (EMBD,)}
    delta: dict[str, tuple[int, ...]] = {f"ssm_conv1d_{part}.weight": (4, 1, inner, 1) for part in "qkv"}
    delta |= {f"attn_{part}.weight": (EMBD, inner) for part in "qkv"}
    delta |= {
        "ssm_f_a.weight": (EMBD, inner), "ssm_g_a.weight": (EMBD, inner), "ssm_beta.weight": (EMBD, HEADS),
        "ssm_a": (1, HEADS), "ssm_dt.bias": (inner,), "ssm_norm.weight": (head,), "attn_output.weight": (inner, EMBD),
    }  # fmt: skip
    latent = {
        "attn_q_a.weight": (EMBD, rank_q), "attn_q_a_norm.weight": (rank_q,), "attn_kv_a_norm.weight": (rank,),
        "attn_q_b.weight": (rank_q, HEADS * (plain + rope)), "attn_kv_a_mqa.weight": (EMBD, rank + rope),
        "attn_k_b.weight": (plain, rank, HEADS), "attn_v_b.weight": (rank, HEAD, HEADS),
        "attn_gate.weight": (EMBD, HEADS), "attn_output.weight": (HEADS * HEAD, EMBD),
    }  # fmt: skip
    drafts = {k: ne for k, ne in NEXTN.items() if "shared" not in k} | {"layer_output_norm.weight": (EMBD,)}
    _add_layer(file, 0, {**norms, **delta, **GATED})
    _add_layer(file, 1, {**norms, **latent, **EXPERTS})
    _add_layer(file, 2, {**norms, **latent, **EXPERTS, **drafts})
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
