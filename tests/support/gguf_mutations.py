"""Structure-aware mutations of GGUF files: the same random generator gives the same file."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from .tiny_model import F16, F32, TinyFile, Typed

NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 127, 128, 255, 256, 512, 1000, 4096, 65535, 65536]
HUGE = [1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
FLOATS = [0.0, -1.0, 1.0, 1e-5, 1e-30, 1e30, 0.5, 1e4, float("nan"), float("inf"), float("-inf"), -0.0]
TEXTS = ["", "x", "llama", "gpt2", "bert", "t5", "rwkv", "none", "no_vocab", "plamo2", "test", "gemma4",
    "default", "\0", "é" * 40,
         "linear", "yarn", "longrope", "llama-bpe", "tekken", "qwen2", "gemma2", "phi3", "mamba",
         "gpt-oss", "smollm", "jina-v2-de"]  # fmt: skip
ARCHS = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "phi2", "mistral3", "starcoder2",
    "gpt2", "falcon",
         "bert", "nomic-bert", "jina-bert-v2", "modern-bert", "t5", "t5encoder", "mamba", "mamba2",
         "rwkv6", "rwkv7", "stablelm",
         "olmo", "olmo2", "command-r", "granite", "granitehybrid", "deepseek2", "qwen2moe", "qwen3moe",
         "llama4", "mpt", "bloom",
         "baichuan", "internlm2", "minicpm", "smollm3", "exaone", "glm4", "gpt-oss", "lfm2", "clip",
         "wavtokenizer-dec",
         "jamba", "plamo2", "dream", "llada", "gemma-embedding", "deci", "arctic", "dbrx", "grok", "orion",
         "refact"]  # fmt: skip
KEYS = [
    "attention.key_length", "attention.value_length", "expert_count", "expert_used_count",
    "attention.sliding_window",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.dimension_sections",
    "attention.max_alibi_bias", "attention.clamp_kqv", "attention.layer_norm_epsilon",
    "attention.group_norm_epsilon",
    "pooling_type", "attention.causal", "use_parallel_residual", "embedding_scale", "residual_scale",
    "logit_scale",
    "attention.scale", "leading_dense_block_count", "expert_feed_forward_length", "expert_shared_count",
    "expert_weights_scale",
    "attention.q_lora_rank", "attention.kv_lora_rank", "ssm.conv_kernel", "ssm.inner_size",
    "ssm.state_size", "ssm.time_step_rank",
    "wkv.head_size", "attention.relative_buckets_count", "decoder_start_token_id",
    "classifier.output_labels", "vocab_size",
    "rope.scaling.attn_factor", "rope.freq_base_swa", "attention.shared_kv_layers", "n_layer_dense_lead",
    "tensor_data_layout",
    "attn_logit_softcapping", "final_logit_softcapping", "swin_norm", "expert_gating_func",
    "nextn_predict_layers",
    "embedding_length_out", "features_length", "posnet.block_count", "attention.group_norm_groups",
    "interleave_moe_layer_step",
    "rope.dimension_count_swa", "attention.key_length_swa", "attention.sliding_window_pattern",
    "altup.num_inputs",
]  # fmt: skip
GENERAL = [
    "split.no", "split.count", "split.tensors.count", "general.alignment", "general.type",
    "general.file_type",
    "tokenizer.ggml.scores", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.seperator_token_id", "tokenizer.ggml.mask_token_id", "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.prefix_token_id", "tokenizer.ggml.eot_token_ids", "tokenizer.ggml.suppress_tokens",
    "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.pre",
    "tokenizer.ggml.token_type_count", "tokenizer.chat_template", "tokenizer.rwkv.world", "adapter.type",
]  # fmt: skip


def number(r: random.Random) -> int:
    return r.choice(NUMBERS if r.random() < 0.85 else HUGE)


def value(r: random.Random) -> Any:
    """A metadata value of a random type."""
    pick = r.randrange(12)
    if pick < 5:
        return Typed("u32", number(r))
    if pick == 5:
        return Typed("f32", r.choice(FLOATS))
    if pick == 6:
        return Typed("str", r.choice(TEXTS))
    if pick == 7:
        return Typed("bool", r.random() < 0.5)
    if pick == 8:
        return Typed(r.choice(["i32", "i64"]), r.choice([-1, 0, 1, -(1 << 31), 5]))
    if pick == 9:
        return Typed(r.choice(["u8", "u16", "u64"]), r.choice([0, 1, 2, 255]))
    if pick == 10:
        return Typed(
            "array",
            [number(r) & 0x7FFFFFFF for _ in range(r.choice([0, 1, 2, 3, 4, 8]))],
            r.choice(["u32", "i32"]),
        )
    return Typed("array", r.choices(TEXTS, k=r.choice([0, 1, 3])), "str")


def change_value(f: TinyFile, r: random.Random) -> None:
    key = r.choice(list(f.metadata))
    old = f.metadata[key]
    if isinstance(old, bool | list) or r.random() < 0.3:
        f.metadata[key] = value(r)
    elif isinstance(old, int):
        f.metadata[key] = max(0, r.choice([number(r), old + 1, old - 1, old * 2, old // 2])) & 0xFFFFFFFF
    elif isinstance(old, float):
        f.metadata[key] = r.choice(FLOATS)
    elif isinstance(old, str):
        f.metadata[key] = r.choice(TEXTS + (ARCHS if key == "general.architecture" else []))


def hyperparameter(f: TinyFile, r: random.Random) -> None:
    arch = f.metadata.get("general.architecture", "llama")
    own = [key for key in f.metadata if isinstance(arch, str) and key.startswith(f"{arch}.")]
    key = r.choice(own) if own and r.random() < 0.7 else f"{arch}.{r.choice(KEYS)}"
    old = f.metadata.get(key)
    if isinstance(old, int) and not isinstance(old, bool) and r.random() < 0.3:
        blocks = f.metadata.get(f"{arch}.block_count", 2)
        n = blocks if isinstance(blocks, int) and blocks < 100 else 2
        f.metadata[key] = Typed(
            "array",
            [r.choice([old, 0, old * 2, old // 2, number(r)]) & 0x7FFFFFFF for _ in range(n)],
            r.choice(["u32", "i32"]),
        )
    elif isinstance(old, int) and r.random() < 0.8:
        f.metadata[key] = number(r)
    else:
        f.metadata[key] = value(r)


def general(f: TinyFile, r: random.Random) -> None:
    f.metadata[r.choice(GENERAL)] = value(r)


def drop_key(f: TinyFile, r: random.Random) -> None:
    del f.metadata[r.choice(list(f.metadata))]


def change_type(f: TinyFile, r: random.Random) -> None:
    """Same number, other type."""
    key = r.choice(list(f.metadata))
    old = f.metadata[key]
    if isinstance(old, int | float) and not isinstance(old, bool):
        kind = r.choice(["u8", "i8", "u16", "i16", "i32", "u64", "i64", "f32", "f64", "str"])
        f.metadata[key] = Typed(kind, str(old) if kind == "str" else float(old) if kind[0] == "f" else int(old) & 0x7F)
    elif isinstance(old, list):
        f.metadata[key] = Typed(
            "array",
            [r.randrange(100) for _ in old],
            r.choice(["u8", "i8", "u16", "u32", "i64", "f32", "f64", "bool"]),
        )


def vocabulary(f: TinyFile, r: random.Random) -> None:
    """Tokens doubled, emptied, with NUL, cut off, or of another length than their types."""
    key = r.choice([k for k in f.metadata if isinstance(f.metadata[k], list)] or ["tokenizer.ggml.tokens"])
    old = list(f.metadata.get(key, ["x"]))
    pick = r.randrange(6)
    if pick == 0:
        old = old[: r.choice([0, 1, 2, 10, 100, len(old) - 1])]
    elif pick == 1:
        old = old + old[: r.choice([1, 5])]
    elif old and isinstance(old[0], str):
        i = r.randrange(len(old))
        old[i] = r.choice(
            [
                "",
                "\0",
                old[i] + "\0x",
                old[0],
                "a b",
                " ",
                "\udcff",
                "\udce4\udcb8",
                "x" * 300,
                "\n",
                "<0x0A>",
                " x",
            ]
        )
    elif old:
        old[r.randrange(len(old))] = r.choice([0, 1, 2, 3, 4, 5, 6, 7, -1, 1000])
    f.metadata[key] = old or Typed("array", [], "str")


def tokenizer(f: TinyFile, r: random.Random) -> None:
    f.metadata["tokenizer.ggml.model"] = r.choice(
        [
            "llama",
            "gpt2",
            "bert",
            "t5",
            "rwkv",
            "none",
            "no_vocab",
            "plamo2",
            "test",
            "gemma4",
            "hybriddna",
            "whitespace",
        ]
    )
    if r.random() < 0.3:
        f.metadata["tokenizer.ggml.pre"] = r.choice(TEXTS)
    if r.random() < 0.3:
        n = len(f.metadata["tokenizer.ggml.tokens"]) if isinstance(f.metadata.get("tokenizer.ggml.tokens"), list) else 3
        f.metadata["tokenizer.ggml.scores"] = [r.choice(FLOATS) for _ in range(n + r.choice([0, 0, -1, 1]))]


def architecture(f: TinyFile, r: random.Random) -> None:
    """The same tensors under another architecture's name."""
    old = f.metadata.get("general.architecture")
    new = r.choice(ARCHS)
    f.metadata["general.architecture"] = new
    if isinstance(old, str):
        for key in [k for k in f.metadata if k.startswith(old + ".")]:
            f.metadata[key.replace(old + ".", new + ".", 1)] = f.metadata.pop(key)


def fit(ne: tuple[int, ...], kind: int, raw: bytes) -> bytes:
    """Data of the length that these sizes and this type need, made of `raw`."""
    size = {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2}.get(kind)
    blocks = {2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    12: (256, 144),
              14: (256, 210), 15: (256, 292), 20: (32, 18), 39: (32, 17), 34: (256, 54), 16: (256, 66),
              41: (128, 18)}  # fmt: skip
    n = 1
    for d in ne:
        n *= d
    need = n * size if size else n // blocks.get(kind, (32, 18))[0] * blocks.get(kind, (32, 18))[1]
    if need > 1 << 20:
        return raw
    return (raw * (need // max(1, len(raw)) + 1))[:need] if raw else bytes(need)


def tensor_type(f: TinyFile, r: random.Random) -> None:
    name = r.choice(list(f.tensors))
    ne, _, raw = f.tensors[name]
    kind = r.choice([0, 1, 2, 3, 6, 7, 8, 9, 10, 12, 14, 15, 16, 20, 24, 25, 26, 27, 28, 30, 34, 39, 41, 4, 31, 43, 99])
    f.tensors[name] = (ne, kind, fit(ne, kind, raw))


def all_types(f: TinyFile, r: random.Random) -> None:
    """Every matrix of another type."""
    kind = r.choice([1, 2, 3, 6, 7, 8, 9, 20, 24, 26, 28, 30, 39])
    for name, (ne, old, raw) in f.tensors.items():
        if (len(ne) > 1 or r.random() < 0.1) and ne[0] % 32 == 0:
            f.tensors[name] = (ne, kind, fit(ne, kind, raw))
        else:
            f.tensors[name] = (ne, old, raw)


def tensor_shape(f: TinyFile, r: random.Random) -> None:
    name = r.choice(list(f.tensors))
    ne, kind, raw = f.tensors[name]
    new = list(ne)
    pick = r.randrange(6)
    if pick == 0:
        new = new[::-1]
    elif pick == 1:
        new = [*new, r.choice([0, 1, 2])]
    elif pick == 2 and len(new) > 1:
        new = new[:-1]
    else:
        i = r.randrange(len(new))
        new[i] = max(0, r.choice([0, 1, new[i] + 1, new[i] * 2, new[i] // 2, new[i] - 32, number(r)]))
    f.tensors[name] = (tuple(new), kind, fit(tuple(new), kind, raw))


def drop_tensor(f: TinyFile, r: random.Random) -> None:
    del f.tensors[r.choice(list(f.tensors))]


def rename_tensor(f: TinyFile, r: random.Random) -> None:
    name = r.choice(list(f.tensors))
    new = r.choice([name + "x", name.replace("weight", "bias"), name.replace("blk.1", "blk.9"),
    "output.weight", "rope_freqs.weight",
                    "blk.0.attn_qkv.weight", "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight",
                    "blk.0.ffn_gate_inp.weight",
                    "output.bias", "blk.0.attn_sinks", "cls.weight", "cls.output.weight",
                    "token_types.weight"])  # fmt: skip
    if new not in f.tensors:
        f.tensors[new] = f.tensors[name]
        if r.random() < 0.5:
            del f.tensors[name]


def add_tensor(f: TinyFile, r: random.Random) -> None:
    """An optional tensor in a shape that may or may not fit."""
    name = r.choice(["output.weight", "rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.attn_k.bias",
    "blk.0.attn_v.bias",
                     "blk.0.attn_output.bias", "blk.0.ffn_gate.bias", "blk.0.ffn_down.bias",
                     "blk.0.ffn_up.bias",
                     "blk.0.rope_factors_long.weight", "blk.0.rope_factors_short.weight",
                     "rope_factors_long.weight",
                     "blk.0.attn_q_norm.weight", "blk.0.ffn_down.scale", "blk.0.attn_rot_embd",
                     "blk.0.ffn_gate_inp.weight", "cls.weight", "cls.bias",
                     "blk.0.ffn_gate_exps.weight", "blk.0.attn_q.scale", "output.scale",
                     "token_types.weight"])  # fmt: skip
    ne = r.choice([(1,), (4,), (8,), (16,), (32,), (64,), (32, 4), (32, 379), (32, 32), (4, 1), (0,), (2, 2, 2, 2)])
    kind = r.choice([F32, F32, F32, F16, 26, 28])
    f.tensors[name] = (ne, kind, fit(ne, kind, b"\x01\x02\x00\x3f" * 4))


def weights(f: TinyFile, r: random.Random) -> None:
    """NaN and huge weights."""
    name = r.choice(list(f.tensors))
    ne, kind, raw = f.tensors[name]
    fill = r.choice([b"\xff", b"\x00", b"\x7f", b"\x00\x00\xc0\x7f"])
    f.tensors[name] = (ne, kind, (fill * len(raw))[: len(raw)])


MUTATIONS: list[tuple[Callable[[TinyFile, random.Random], None], int]] = [
    (change_value, 4), (hyperparameter, 10), (general, 2), (drop_key, 3), (change_type, 4), (vocabulary,
    3), (tokenizer, 3), (architecture, 3),
    (tensor_type, 6), (all_types, 2), (tensor_shape, 5), (drop_tensor, 3), (rename_tensor, 2), (add_tensor,
    3), (weights, 1),
]  # fmt: skip


def mutate(f: TinyFile, r: random.Random) -> bytes:
    """One file: one to four mutations of `f`, sometimes bytes flipped or the end cut off."""
    functions, odds = zip(*MUTATIONS, strict=True)
    for _ in range(r.choice([1, 1, 1, 2, 2, 3, 4])):
        change = r.choices(functions, odds)[0]
        if f.metadata and f.tensors:
            change(f, r)
    raw = bytearray(f.bytes())
    if r.random() < 0.06:
        for _ in range(r.choice([1, 3, 10])):
            raw[r.randrange(min(len(raw), 12000))] = r.randrange(256)
    if r.random() < 0.02:
        del raw[r.randrange(len(raw)) :]
    return bytes(raw)
