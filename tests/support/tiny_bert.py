"""Writes a tiny BERT as a Hugging Face folder: random weights, 40 words; with a classification head if asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from llcuda_ffi.gguf.safetensors import write_safetensors

_WORDS = "the cat sat on mat dog ran in sun river stone blue red big small old new good bad tree"
WORDS = _WORDS.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WIDTH, LAYERS, HEADS, FF, POSITIONS = 64, 2, 2, 128, 64


def write_tiny_bert(folder: Path, *, head: bool = False, seed: int = 5) -> Path:
    """The folder, as transformers would save it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {word: i for i, word in enumerate([*SPECIAL, *WORDS, "##s", "##ing", *"abcdefghijkl"])}
    config = {
        "architectures": ["BertForSequenceClassification" if head else "BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "intermediate_size": FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "vocab_size": len(vocab),
    }
    if head:
        config |= {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {
        "added_tokens": [{"id": i, "content": token, "special": True} for i, token in enumerate(SPECIAL)],
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocab},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    rng = np.random.default_rng(seed)
    prefix = "bert." if head else ""
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = (rng.standard_normal(shape) * 0.3).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = (1 + 0.1 * rng.standard_normal(WIDTH)).astype(np.float32)
        tensors[f"{name}.bias"] = (0.1 * rng.standard_normal(WIDTH)).astype(np.float32)

    def dense(name: str, rows: int, columns: int) -> None:
        add(f"{name}.weight", rows, columns)
        add(f"{name}.bias", rows)

    for name, rows in (("word", len(vocab)), ("position", POSITIONS), ("token_type", 2)):
        add(f"{prefix}embeddings.{name}_embeddings.weight", rows, WIDTH)
    norm(f"{prefix}embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"{prefix}encoder.layer.{i}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", WIDTH, WIDTH)
        dense(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", FF, WIDTH)
        dense(f"{layer}.output.dense", WIDTH, FF)
        norm(f"{layer}.output.LayerNorm")
    dense(f"{prefix}pooler.dense", WIDTH, WIDTH)
    if head:
        dense("classifier", 1, WIDTH)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder
