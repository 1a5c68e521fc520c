"""Families whose tiny models are compared with transformers: SmolVLM, Qwen2.5-VL, Qwen3-VL, Gemma 3, Qwen2-Audio."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image as Pillow

from .hugging_seers import Family
from .seer_weights import EMBD, EPS, FF, HEAD, HEADS, HEADS_KV, MEDIUM, N_VOCAB

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
TEXT = {
    "vocab_size": N_VOCAB, "hidden_size": EMBD, "intermediate_size": FF, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS_KV, "head_dim": HEAD, "rms_norm_eps": EPS,
    "max_position_embeddings": 2048, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SECTIONS = [4, 2, 2]
# of Qwen3-VL's interleaved kind: where a section ends early, libllama gives the last frequencies no position, and
# transformers that of t (in the real models these two frequencies of 64 hardly turn)
INTERLEAVED = [3, 3, 2]


def _scaled(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)


def _tiles(pixels: np.ndarray, _: torch.Tensor) -> dict[str, Any]:
    """Four tiles of 64 × 64 and the whole, made smaller."""
    small = np.asarray(Pillow.fromarray(pixels).resize((64, 64), Pillow.Resampling.LANCZOS))
    tiles = [pixels[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    return {"pixel_values": torch.stack([_scaled(tile) for tile in (*tiles, small)])[None]}


def _patches(pixels: np.ndarray, ids: torch.Tensor, size: int) -> dict[str, Any]:
    """Qwen's patches, in blocks of 2 × 2, the frame given twice."""
    height, width = pixels.shape[0] // size, pixels.shape[1] // size
    blocks = _scaled(pixels).reshape(3, height // 2, 2, size, width // 2, 2, size).permute(1, 4, 2, 5, 0, 3, 6)
    rows = blocks.reshape(height * width, 3, 1, size, size).expand(-1, -1, 2, -1, -1)
    return {
        "pixel_values": rows.reshape(height * width, -1),
        "image_grid_thw": torch.tensor([[1, height, width]]),
        "mm_token_type_ids": (ids == MEDIUM).int(),
    }


def _mel(samples: np.ndarray, _: torch.Tensor) -> dict[str, Any]:
    make = transformers.WhisperFeatureExtractor(feature_size=128)
    made = make(samples, sampling_rate=16_000, return_tensors="pt", padding="max_length")
    return {"input_features": made["input_features"], "feature_attention_mask": torch.ones(1, 3000, dtype=torch.long)}


def _smolvlm() -> Any:
    return transformers.Idefics3Config(
        architectures=["Idefics3ForConditionalGeneration"],
        text_config={**TEXT, "model_type": "llama", "rope_parameters": ROPE},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8,
        },
        scale_factor=2, image_token_id=MEDIUM,
    )  # fmt: skip


def _qwen25vl() -> Any:
    return transformers.Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config={**TEXT, "rope_parameters": {**ROPE, "mrope_section": SECTIONS}},
        vision_config={
            "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": EMBD,
            "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1, 3],
        },
        image_token_id=MEDIUM, video_token_id=N_VOCAB + 1,
    )  # fmt: skip


def _qwen3vl() -> Any:
    return transformers.Qwen3VLConfig(
        architectures=["Qwen3VLForConditionalGeneration"],
        text_config={**TEXT, "num_hidden_layers": 3, "rope_parameters": {**ROPE, "mrope_section": INTERLEAVED}},
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": EMBD,
            "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=MEDIUM, video_token_id=N_VOCAB + 1,
    )  # fmt: skip


def _gemma3() -> Any:
    return transformers.Gemma3Config(
        architectures=["Gemma3ForConditionalGeneration"],
        text_config={**TEXT, "num_hidden_layers": 6, "query_pre_attn_scalar": HEAD, "sliding_window": 512},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "vision_use_head": False,
        },
        mm_tokens_per_image=16, image_token_index=MEDIUM,
    )  # fmt: skip


def _qwen2audio() -> Any:
    return transformers.Qwen2AudioConfig(
        architectures=["Qwen2AudioForConditionalGeneration"],
        text_config={**TEXT, "model_type": "qwen2", "rope_parameters": ROPE},
        audio_config={
            "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
            "num_mel_bins": 128, "max_source_positions": 1500,
        },
        audio_token_index=MEDIUM,
    )  # fmt: skip


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "smolvlm", "llama", _smolvlm, {**HALF, "size": {"longest_edge": 128}}, _tiles, {}
        ),
        Family(
            "qwen2.5-vl", "qwen2vl", _qwen25vl, HALF,
            lambda pixels, ids: _patches(pixels, ids, 14), {"rope.dimension_sections": [*SECTIONS, 0]},
        ),
        Family(
            "qwen3-vl", "qwen3vl", _qwen3vl, HALF,
            lambda pixels, ids: _patches(pixels, ids, 16),
            {"rope.dimension_sections": [*INTERLEAVED, 0], "n_deepstack_layers": 2}, 3,
        ),
        Family(
            "gemma3", "gemma3", _gemma3, {**HALF, "image_seq_length": 16},
            lambda pixels, ids: {"pixel_values": _scaled(pixels)[None], "token_type_ids": (ids == MEDIUM).int()},
            {"rope.freq_base": 1000000.0, "attention.sliding_window": 512}, 6,
        ),
        Family("qwen2-audio", "qwen2", _qwen2audio, {}, _mel, {}),
    )
}  # fmt: skip
