"""What the tiny models that see or hear are made of, without transformers: vocabulary, weights, media; and the models
themselves from a recipe (tests/data/seers.json, written by make_seer_reference.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .tiny_model import TinyFile, Typed, bpe

EMBD, FF, HEADS, HEADS_KV, HEAD = 64, 96, 4, 2, 16
EPS = 1e-6
MARKS = (
    "<fake_token_around_image>", "<global-img>", "\n\n", "<start_of_image>", "<end_of_image>", "<|vision_start|>",
    "<|vision_end|>", "<|audio_bos|>", "<|audio_eos|>", "<medium>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)  # fmt: skip


def vocabulary() -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and token types of all families; the last tokens are marks."""
    tokens, merges = bpe()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS]
    return tokens + special, merges, [1] * len(tokens) + [3] * len(special)


N_VOCAB = len(vocabulary()[0])
MEDIUM = vocabulary()[0].index("<medium>")


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a parameter, made of its name: of a size that keeps a random network's numbers near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape, np.float32)
    if len(shape) == 1:
        norm = name.endswith("weight") and ("norm" in name or "ln_q" in name)
        return values * np.float32(0.1) + np.float32(norm)
    if "embed" in name and len(shape) == 2:
        return values * np.float32(0.5)
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def picture(height: int, width: int) -> np.ndarray:
    """Smooth shapes with some noise: uint8 (height, width, 3)."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + 3 * c)) + np.cos(y / (11 - 2 * c)) for c in range(3)]
    noise = rng.integers(0, 40, (height, width, 3))
    return np.clip(np.stack(waves, axis=2) * 50 + 108 + noise, 0, 255).astype(np.uint8)


def tone() -> np.ndarray:
    """One second of rising tones with noise at 16 kHz: float32 (16000,)."""
    t = np.arange(16_000) / 16_000
    noise = np.random.default_rng(3).standard_normal(16_000) * 0.02
    return (0.4 * np.sin(2 * np.pi * (200 + 900 * t) * t) + noise).astype(np.float32)


MEDIA: dict[str, Callable[[], np.ndarray]] = {
    "smolvlm": lambda: picture(128, 128),
    "qwen2.5-vl": lambda: picture(196, 252),
    "qwen3-vl": lambda: picture(96, 128),
    "gemma3": lambda: picture(64, 64),
    "qwen2-audio": tone,
}

# from a parameter of transformers to a tensor of GGUF
OPERATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda a: a,
    "plus 1": lambda a: a + np.float32(1),
    "third 0": lambda a: np.split(a, 3)[0],
    "third 1": lambda a: np.split(a, 3)[1],
    "third 2": lambda a: np.split(a, 3)[2],
    "frame 0": lambda a: a[:, :, 0],
    "frame 1": lambda a: a[:, :, 1],
    "pairs": lambda a: a.reshape(-1, 2, HEAD // 2, a.shape[-1]).swapaxes(1, 2).reshape(a.shape),
}


def write_seer(recipe: Mapping[str, Any], folder: Path) -> None:
    """Write the `text.gguf` and `mmproj.gguf` of a recipe."""
    for which in ("text", "mmproj"):
        entries = {key: Typed(*value) for key, value in recipe[which]["metadata"].items()}
        file = TinyFile(entries)
        if which == "text":
            tokens, merges, types = vocabulary()
            file.metadata.update(
                {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges, "tokenizer.ggml.token_type": types}
            )
        for name, source, shape, operation, sizes, kind in recipe[which]["tensors"]:
            values = OPERATIONS[operation](weights(source, tuple(shape)))
            raw = np.ascontiguousarray(values, np.float16 if kind == 1 else np.float32).tobytes()
            file.tensors[name] = (tuple(sizes), kind, raw)
        file.write(folder / f"{which}.gguf")
