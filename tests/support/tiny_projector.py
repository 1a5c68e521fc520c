"""Writes tiny mmproj files: random encoders of the shapes that libmtmd builds differently, for a tiny llama."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .tiny_model import TinyFile, Typed, tiny_llama

EMBD = 32  # of the tiny llama


def _u32(value: int) -> Typed:
    return Typed("u32", value)


def tiny_projector(
    kind: str = "idefics3",
    *,
    image_size: int = 32,
    patch_size: int = 8,
    embd: int = 32,
    heads: int = 2,
    layers: int = 2,
    ff: int = 48,
    scale: int = 2,
    text_embd: int = EMBD,
    seed: int = 0,
    **metadata: Any,
) -> TinyFile:
    """A vision encoder of `kind`: idefics3 (tiles, causal) or gemma3 (one square, attends to itself both ways)."""
    rng = np.random.default_rng(seed)
    entries: dict[str, Any] = {
        "general.architecture": "clip",
        "general.file_type": _u32(0),
        "clip.has_vision_encoder": True,
        "clip.projector_type": kind,
        "clip.use_gelu": True,
        "clip.vision.image_size": _u32(image_size),
        "clip.vision.patch_size": _u32(patch_size),
        "clip.vision.embedding_length": _u32(embd),
        "clip.vision.feed_forward_length": _u32(ff),
        "clip.vision.block_count": _u32(layers),
        "clip.vision.projection_dim": _u32(text_embd),
        "clip.vision.attention.head_count": _u32(heads),
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.projector.scale_factor": _u32(scale),
        "clip.vision.preproc_image_size": _u32(2 * image_size),
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    file = TinyFile({**entries, **metadata})
    patches = (image_size // patch_size) ** 2
    file.add("v.patch_embd.weight", (patch_size, patch_size, 3, embd), rng)
    file.add("v.patch_embd.bias", (embd,), rng)
    file.add("v.position_embd.weight", (embd, patches), rng)
    for i in range(layers):
        for norm in ("ln1", "ln2"):
            file.add(f"v.blk.{i}.{norm}.weight", (embd,), rng, one=True)
            file.add(f"v.blk.{i}.{norm}.bias", (embd,), rng)
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            file.add(f"v.blk.{i}.{part}.weight", (embd, embd), rng)
            file.add(f"v.blk.{i}.{part}.bias", (embd,), rng)
        file.add(f"v.blk.{i}.ffn_up.weight", (embd, ff), rng)
        file.add(f"v.blk.{i}.ffn_up.bias", (ff,), rng)
        file.add(f"v.blk.{i}.ffn_down.weight", (ff, embd), rng)
        file.add(f"v.blk.{i}.ffn_down.bias", (embd,), rng)
    file.add("v.post_ln.weight", (embd,), rng, one=True)
    file.add("v.post_ln.bias", (embd,), rng)
    if kind == "gemma3":
        file.add("mm.input_projection.weight", (text_embd, embd), rng)
        file.add("mm.soft_emb_norm.weight", (embd,), rng, one=True)
    else:
        file.add("mm.model.fc.weight", (embd * scale * scale, text_embd), rng)
    return file


def make_tiny_projector(path: str | os.PathLike[str], kind: str = "idefics3", **shape: Any) -> None:
    """Write one."""
    tiny_projector(kind, **shape).write(path)


def make_tiny_seer(path: str | os.PathLike[str], *, seed: int = 0, embd: int = EMBD, **shape: int) -> None:
    """Write a tiny llama whose vocabulary has the marks that the encoders above put around an image."""
    marks = ["<fake_token_around_image>", "<global-img>", "\n\n", "<start_of_image>", "<end_of_image>"]
    marks += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    file = tiny_llama(seed=seed, embd=embd, **shape)
    tokens = [*file.metadata["tokenizer.ggml.tokens"], *marks]
    file.metadata["tokenizer.ggml.tokens"] = tokens
    file.metadata["tokenizer.ggml.token_type"] = [*file.metadata["tokenizer.ggml.token_type"], *[3] * len(marks)]
    file.metadata["llama.vocab_size"] = len(tokens)
    file.add("token_embd.weight", (embd, len(tokens)), np.random.default_rng(seed + 1))
    file.write(path)
