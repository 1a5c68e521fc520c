"""More tiny models, of the kinds that libllama builds differently: experts, sliding windows, learned
positions, states."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .tiny_model import CORPUS, F32, Q8_0, TinyFile, tiny_bert, tiny_llama

EMBD = int(os.environ.get("LLCUDA_FFI_TINY_WIDTH", "32"))  # benchmarks want heads of a real size
HEADS = max(4, EMBD // 64)
HEADS_KV, FF, LAYERS = HEADS // 2, 2 * EMBD, 2
HEAD, KV = EMBD // HEADS, EMBD // HEADS * HEADS_KV


def _start(architecture: str, **own: Any) -> TinyFile:
    """The metadata and vocabulary of tiny_llama under another name; no tensors but the embedding and last
    norm."""
    file = tiny_llama(embd=EMBD)
    kept = {k: v for k, v in file.metadata.items() if not k.startswith("llama.")}
    kept["general.architecture"] = architecture
    size = {"context_length": 512, "embedding_length": EMBD, "block_count": LAYERS, "feed_forward_length": FF}
    heads = {"attention.head_count": HEADS, "attention.head_count_kv": HEADS_KV}
    epsilon = {"attention.layer_norm_rms_epsilon": 1e-5}
    for key, value in {
        **size,
        **heads,
        **epsilon,
        **{k.replace("__", "."): v for k, v in own.items()},
    }.items():
        if value is not None:
            kept[f"{architecture}.{key}"] = value
    tensors = {k: v for k, v in file.tensors.items() if k in ("token_embd.weight", "output_norm.weight")}
    return TinyFile(kept, tensors)


def _add(file: TinyFile, shapes: dict[str, tuple[int, ...]], layers: int = LAYERS, prefix: str = "blk") -> None:
    rng = np.random.default_rng(1)
    for i in range(layers):
        _add_layer(file, i, shapes, prefix, rng)


def _add_layer(
    file: TinyFile,
    i: int,
    shapes: dict[str, tuple[int, ...]],
    prefix: str = "blk",
    rng: np.random.Generator | None = None,
) -> None:
    rng = rng or np.random.default_rng(100 + i)
    for name, ne in shapes.items():
        file.add(f"{prefix}.{i}.{name}", ne, rng, one="norm" in name and name.endswith("weight"))


ATTENTION = {
    "attn_norm.weight": (EMBD,),
    "attn_q.weight": (EMBD, EMBD),
    "attn_k.weight": (EMBD, KV),
    "attn_v.weight": (EMBD, KV),
    "attn_output.weight": (EMBD, EMBD),
    "ffn_norm.weight": (EMBD,),
}
GATED = {"ffn_gate.weight": (EMBD, FF), "ffn_up.weight": (EMBD, FF), "ffn_down.weight": (FF, EMBD)}
HEAD_NORMS = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}


def tiny_qwen2(architecture: str = "qwen2") -> TinyFile:
    """Biases on q, k and v; an output matrix of its own. As "dream" it generates by diffusion."""
    file = _start(architecture, rope__freq_base=10000.0)
    rng = np.random.default_rng(2)
    file.add("output.weight", file.tensors["token_embd.weight"][0], rng)
    _add(file, {**ATTENTION, **GATED, "attn_q.bias": (EMBD,), "attn_k.bias": (KV,), "attn_v.bias": (KV,)})
    return file


def tiny_moe() -> TinyFile:
    """Four experts, two used."""
    file = _start("qwen3moe", expert_count=4, expert_used_count=2, expert_feed_forward_length=32)
    experts = {
        "ffn_gate_inp.weight": (EMBD, 4),
        "ffn_gate_exps.weight": (EMBD, 32, 4),
        "ffn_up_exps.weight": (EMBD, 32, 4),
        "ffn_down_exps.weight": (32, EMBD, 4),
    }
    _add(file, {**ATTENTION, **HEAD_NORMS, **experts})
    return file


def tiny_mixtral() -> TinyFile:
    """A llama with experts."""
    file = _start("llama", expert_count=4, expert_used_count=2, rope__dimension_count=HEAD)
    experts = {
        "ffn_gate_inp.weight": (EMBD, 4),
        "ffn_gate_exps.weight": (EMBD, FF, 4),
        "ffn_up_exps.weight": (EMBD, FF, 4),
        "ffn_down_exps.weight": (FF, EMBD, 4),
    }
    _add(file, {**ATTENTION, **experts})
    return file


def _sentencepiece(file: TinyFile, model: str) -> None:
    """A vocabulary of scores with byte tokens instead of the merges."""
    words = [f"\u2581{word}" for word in dict.fromkeys(CORPUS.split())]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    letters = [x for x in map(chr, range(33, 127)) if x not in tokens] + ["\u2581"]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))
    tokens += words + letters
    for key in [k for k in file.metadata if k.startswith("tokenizer.")]:
        del file.metadata[key]
    file.metadata.update(
        {
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
        }
    )
    file.add("token_embd.weight", (EMBD, len(tokens)), np.random.default_rng(3))


def tiny_gemma3() -> TinyFile:
    """A sliding window, norms after each part, a SentencePiece vocabulary."""
    file = _start(
        "gemma3",
        block_count=6,
        attention__sliding_window=32,
        attention__key_length=HEAD,
        attention__value_length=HEAD,
    )
    _sentencepiece(file, "llama")
    norms = {"post_attention_norm.weight": (EMBD,), "post_ffw_norm.weight": (EMBD,)}
    _add(file, {**ATTENTION, **GATED, **HEAD_NORMS, **norms}, layers=6)
    return file


def tiny_phi3() -> TinyFile:
    """q, k and v in one matrix, gate and up in another, long and short rope factors."""
    file = _start("phi3", rope__dimension_count=HEAD, rope__scaling__original_context_length=128)
    rng = np.random.default_rng(2)
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        file.add(name, (HEAD // 2,), rng, one=True)
    parts = {k: v for k, v in ATTENTION.items() if k not in ("attn_q.weight", "attn_k.weight", "attn_v.weight")}
    _add(
        file,
        {
            **parts,
            "attn_qkv.weight": (EMBD, EMBD + 2 * KV),
            "ffn_up.weight": (EMBD, 2 * FF),
            "ffn_down.weight": (FF, EMBD),
        },
    )
    return file


def tiny_gpt2() -> TinyFile:
    """Learned positions, biases everywhere, one matrix for q, k and v."""
    own = {"attention__layer_norm_epsilon": 1e-5, "attention__layer_norm_rms_epsilon": None}
    file = _start("gpt2", **own, attention__head_count_kv=HEADS)
    rng = np.random.default_rng(2)
    file.add("position_embd.weight", (EMBD, 512), rng)
    file.add("output_norm.bias", (EMBD,), rng)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, ne in {
        "attn_norm": (EMBD,), "attn_qkv": (EMBD, 3 * EMBD), "attn_output": (EMBD, EMBD), "ffn_norm": (EMBD,),
        "ffn_up": (EMBD, FF), "ffn_down": (FF, EMBD),
    }.items():  # fmt: skip
        shapes[name + ".weight"], shapes[name + ".bias"] = ne, ne[-1:]
    _add(file, shapes)
    return file


def tiny_mamba() -> TinyFile:
    """No attention: a recurrent state."""
    inner, state, rank = 2 * EMBD, 8, 4
    file = _start(
        "mamba", ssm__conv_kernel=4, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=rank,
        attention__head_count=0, attention__head_count_kv=None, feed_forward_length=0,
    )  # fmt: skip
    _add(file, {
        "attn_norm.weight": (EMBD,), "ssm_in.weight": (EMBD, 2 * inner), "ssm_conv1d.weight": (4, inner),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (inner, rank + 2 * state), "ssm_dt.weight": (rank, inner), "ssm_dt.bias": (inner,),
        "ssm_a": (state, inner),
        "ssm_d": (inner,), "ssm_out.weight": (inner, EMBD),
    })  # fmt: skip
    return file


def tiny_t5() -> TinyFile:
    """An encoder and a decoder, a unigram vocabulary."""
    file = _start(
        "t5", attention__relative_buckets_count=8, decoder_start_token_id=0, attention__head_count_kv=HEADS,
        attention__key_length=HEAD, attention__value_length=HEAD,
    )  # fmt: skip
    _sentencepiece(file, "t5")
    del file.tensors["output_norm.weight"]
    rng = np.random.default_rng(4)
    for side in ("enc", "dec"):
        file.add(f"{side}.output_norm.weight", (EMBD,), rng, one=True)
        square = dict.fromkeys(("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_o.weight"), (EMBD, EMBD))
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (EMBD,),
            "attn_rel_b.weight": (HEADS, 8),
            **square,
            "ffn_norm.weight": (EMBD,),
            **GATED,
        }
        if side == "dec":
            shapes |= {"cross_attn_norm.weight": (EMBD,), **{f"cross_{k}": v for k, v in square.items()}}
        _add(file, shapes, prefix=f"{side}.blk")
    return file


def tiny_lfm2(window: int = 0) -> TinyFile:
    """Short convolutions with a state in layers 0 and 2, attention in the others; with a window all of it slides."""
    own = {"attention__sliding_window": window} if window else {}
    heads = [0, HEADS_KV, 0, HEADS_KV]
    file = _start("lfm2", block_count=4, shortconv__l_cache=3, attention__head_count_kv=heads, **own)
    file.tensors["token_embd_norm.weight"] = file.tensors.pop("output_norm.weight")
    norms = {"attn_norm.weight": (EMBD,), "ffn_norm.weight": (EMBD,)}
    convolution = {
        "shortconv.conv.weight": (3, EMBD), "shortconv.in_proj.weight": (EMBD, 3 * EMBD),
        "shortconv.out_proj.weight": (EMBD, EMBD),
    }  # fmt: skip
    for i, n in enumerate(heads):
        _add_layer(file, i, {**GATED, **(ATTENTION | HEAD_NORMS if n else norms | convolution)})
    return file


def tiny_granite_hybrid() -> TinyFile:
    """Mamba 2 in layers 0 and 2, attention in the others."""
    inner, state, groups, rank = 2 * EMBD, 8, 1, 4
    heads = [0, HEADS_KV, 0, HEADS_KV]
    file = _start(
        "granitehybrid", block_count=4, ssm__conv_kernel=4, ssm__inner_size=inner, ssm__state_size=state,
        ssm__time_step_rank=rank, ssm__group_count=groups, attention__head_count_kv=heads,
        rope__dimension_count=HEAD,
    )  # fmt: skip
    mixed = inner + 2 * groups * state
    mamba = {
        "attn_norm.weight": (EMBD,), "ffn_norm.weight": (EMBD,), "ssm_in.weight": (EMBD, inner + mixed + rank),
        "ssm_conv1d.weight": (4, mixed), "ssm_conv1d.bias": (mixed,), "ssm_dt.bias": (rank,), "ssm_a": (1, rank),
        "ssm_d": (1, rank), "ssm_norm.weight": (inner // groups, groups), "ssm_out.weight": (inner, EMBD),
    }  # fmt: skip
    for i, n in enumerate(heads):
        _add_layer(file, i, {**GATED, **(ATTENTION if n else mamba)})
    return file


def tiny_qwen35() -> TinyFile:
    """Gated delta net in three of four layers, positions in several dimensions (M-RoPE)."""
    state, keys, values = 8, 2, 4
    file = _start(
        "qwen35", block_count=4, ssm__conv_kernel=4, ssm__inner_size=state * values, ssm__state_size=state,
        ssm__time_step_rank=values, ssm__group_count=keys, rope__dimension_count=HEAD,
        rope__dimension_sections=[HEAD // 4, HEAD // 8, HEAD // 8, 0], attention__key_length=HEAD,
        attention__value_length=HEAD,
    )  # fmt: skip
    mixed = 2 * state * keys + state * values
    norms = {"attn_norm.weight": (EMBD,), "post_attention_norm.weight": (EMBD,)}
    delta = {
        "attn_qkv.weight": (EMBD, mixed), "attn_gate.weight": (EMBD, state * values), "ssm_conv1d.weight": (4, mixed),
        "ssm_dt.bias": (values,), "ssm_a": (values,), "ssm_beta.weight": (EMBD, values),
        "ssm_alpha.weight": (EMBD, values), "ssm_norm.weight": (state,), "ssm_out.weight": (state * values, EMBD),
    }  # fmt: skip
    attention = {k: v for k, v in ATTENTION.items() if k != "ffn_norm.weight"}
    attention["attn_q.weight"] = (EMBD, 2 * EMBD)
    for i in range(4):
        _add_layer(file, i, {**norms, **GATED, **(delta if i < 3 else attention | HEAD_NORMS)})
    return file


def tiny_deepseek2() -> TinyFile:
    """Latent attention (MLA): one compressed row for K and V together."""
    # wide ones have DeepSeek-V2-Lite's proportions
    rank, rope, plain, rank_q = (16, 4, 8, 12) if EMBD < 256 else (EMBD // 4, 32, 64, EMBD // 2)
    file = _start(
        "deepseek2", attention__head_count_kv=1, attention__key_length=rank + rope, attention__value_length=rank,
        attention__key_length_mla=plain + rope, attention__value_length_mla=HEAD, attention__kv_lora_rank=rank,
        attention__q_lora_rank=rank_q, rope__dimension_count=rope, leading_dense_block_count=LAYERS,
        expert_feed_forward_length=FF, expert_shared_count=1,
    )  # fmt: skip
    _add(file, {
        "attn_norm.weight": (EMBD,), "ffn_norm.weight": (EMBD,), **GATED, "attn_q_a_norm.weight": (rank_q,),
        "attn_kv_a_norm.weight": (rank,), "attn_q_a.weight": (EMBD, rank_q),
        "attn_q_b.weight": (rank_q, HEADS * (plain + rope)), "attn_kv_a_mqa.weight": (EMBD, rank + rope),
        "attn_k_b.weight": (plain, rank, HEADS), "attn_v_b.weight": (rank, HEAD, HEADS),
        "attn_output.weight": (HEADS * HEAD, EMBD),
    })  # fmt: skip
    return file


def lively(file: TinyFile) -> TinyFile:
    """The same with larger weights and an output matrix of its own: every token of the context shows in the answer."""
    for name, (ne, kind, raw) in file.tensors.items():
        if kind == F32 and len(ne) > 1 and name.startswith(("blk.", "token_embd.weight")):
            file.tensors[name] = ne, kind, (np.frombuffer(raw, np.float32) * 6).tobytes()
        if name.endswith("ssm_a"):  # states fade, slowly
            file.tensors[name] = ne, kind, (-0.2 - np.abs(np.frombuffer(raw, np.float32))).tobytes()
        if name.endswith("ssm_dt.bias"):
            file.tensors[name] = ne, kind, np.full(ne, -2, np.float32).tobytes()
    if "output.weight" not in file.tensors:
        file.add("output.weight", file.tensors["token_embd.weight"][0], np.random.default_rng(9))
        ne, kind, raw = file.tensors["output.weight"]
        file.tensors["output.weight"] = ne, kind, (np.frombuffer(raw, np.float32) * 20).tobytes()
    return file


def tiny_t5_encoder() -> TinyFile:
    """The encoder of `tiny_t5`, with the same weights."""
    file = tiny_t5()
    metadata = {key.replace("t5.", "t5encoder.") if key[:3] == "t5." else key: v for key, v in file.metadata.items()}
    metadata["general.architecture"] = "t5encoder"
    return TinyFile(metadata, {k: v for k, v in file.tensors.items() if not k.startswith("dec.")})


TINY: dict[str, Callable[[], TinyFile]] = {
    "llama": lambda: tiny_llama(embd=EMBD, heads=HEADS, heads_kv=HEADS_KV, ff=FF),
    "llama-q8": lambda: tiny_llama(kind=Q8_0, layers=1),
    "bert": tiny_bert,
    "qwen2": tiny_qwen2,
    "moe": tiny_moe,
    "mixtral": tiny_mixtral,
    "gemma3": tiny_gemma3,
    "phi3": tiny_phi3,
    "gpt2": tiny_gpt2,
    "mamba": tiny_mamba,
    "lfm2": tiny_lfm2,
    "lfm2-window": lambda: tiny_lfm2(32),
    "granite-hybrid": tiny_granite_hybrid,
    "qwen35": tiny_qwen35,
    "deepseek2": tiny_deepseek2,
    "t5": tiny_t5,
    "t5encoder": tiny_t5_encoder,
    "dream": lambda: tiny_qwen2("dream"),
}
