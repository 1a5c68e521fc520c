"""Writes small GGUF models: random weights, a small real byte-level BPE vocabulary, loaded in milliseconds.

make_tiny_llama(path)                        a llama of two layers, about 150 KB
make_tiny_llama(path, {"llama.block_count": 1}, drop=["general.name"])
make_tiny_bert(path)                         an embedding model of the same size
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

CODES = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "str": 8,
    "u64": 10,
    "i64": 11,
    "f64": 12,
}
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
F32, F16, Q8_0 = 0, 1, 8
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the dog sleeps in the sun while the fox runs away again "
    "she said that there was nothing to be done about the weather because it had been raining for three days "
    "one two three four five six seven eight nine ten eleven twelve thirteen and so on until the end of the list "
    "a model reads tokens and writes tokens one after another until it has nothing more to say about the question"
)


@dataclass
class Typed:
    """A metadata value with its type named: Typed("u16", 3), Typed("array", [1, 2], "i32")."""

    type: str
    value: Any
    item: str = ""


@dataclass
class TinyFile:
    """A GGUF in parts: change any of them, then `write`. A tensor is its sizes, its type and its data."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]] = field(default_factory=dict)
    version: int = 3
    alignment: int = 32
    order: str = "<"

    def add(self, name: str, ne: tuple[int, ...], rng: np.random.Generator, kind: int = F32, one: bool = False) -> None:
        n = int(np.prod(ne))
        values = np.ones(n) if one else rng.standard_normal(n) * 0.05
        self.tensors[name] = (ne, kind, _encode(values.astype(np.float32), kind))

    def bytes(self) -> bytes:
        o = self.order
        head = [struct.pack(o + "4sIQQ", b"GGUF", self.version, len(self.tensors), len(self.metadata))]
        head += [_text(key, o) + _value(value, o) for key, value in self.metadata.items()]
        data, at = [], 0
        for name, (ne, kind, raw) in self.tensors.items():
            head.append(_text(name, o) + struct.pack(f"{o}I{len(ne)}QIQ", len(ne), *ne, kind, at))
            data.append(raw + bytes(-len(raw) % self.alignment))
            at += len(data[-1])
        top = b"".join(head)
        return top + bytes(-len(top) % self.alignment) + b"".join(data)

    def write(self, path: str | os.PathLike[str]) -> None:
        with open(path, "wb") as file:
            file.write(self.bytes())


def _encode(values: np.ndarray, kind: int) -> bytes:
    if kind == F32:
        return values.tobytes()
    if kind == F16:
        return values.astype(np.float16).tobytes()
    blocks = values.reshape(-1, 32)  # Q8_0: a half scale and 32 signed bytes
    scale = np.abs(blocks).max(1) / 127
    quants = np.round(blocks / np.where(scale, scale, 1)[:, None]).astype(np.int8)
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = scale.astype(np.float16)[:, None].view(np.uint8)
    out[:, 2:] = quants.view(np.uint8)
    return out.tobytes()


def _text(value: str | bytes, order: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return struct.pack(order + "Q", len(raw)) + raw


def _value(value: Any, order: str) -> bytes:
    if not isinstance(value, Typed):
        value = _typed(value)
    if value.type == "array":
        code = CODES[value.item]
        head = struct.pack(order + "IIQ", 9, code, len(value.value))
        if code == 8:
            return head + b"".join(_text(item, order) for item in value.value)
        return head + struct.pack(f"{order}{len(value.value)}{FORMATS[code]}", *value.value)
    code = CODES[value.type]
    if code == 8:
        return struct.pack(order + "I", code) + _text(value.value, order)
    return struct.pack(order + "I" + FORMATS[code], code, value.value)


def _typed(value: Any) -> Typed:
    if isinstance(value, bool):
        return Typed("bool", value)
    if isinstance(value, int):
        return Typed("u32", value)
    if isinstance(value, float):
        return Typed("f32", value)
    if isinstance(value, str | bytes):
        return Typed("str", value)
    first = value[0] if len(value) else ""
    return Typed(
        "array",
        value,
        "f32" if any(isinstance(x, float) for x in value) else "i32" if isinstance(first, int) else "str",
    )


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    table.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in table)})
    return [table[b] for b in range(256)]


def bpe(n_merges: int = 120) -> tuple[list[str], list[str]]:
    """(tokens, merges) of a byte-level BPE trained on a few sentences."""
    alphabet = byte_alphabet()
    words = Counter(tuple(alphabet[b] for b in (" " + word).encode()) for word in CORPUS.split())
    tokens, merges = list(alphabet), []
    for _ in range(n_merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        a, b = max(pairs, key=lambda pair: (pairs[pair], pair))
        tokens.append(a + b)
        merges.append(f"{a} {b}")
        words = Counter({_join(word, a, b): n for word, n in words.items()})
    return tokens, merges


def _join(word: tuple[str, ...], a: str, b: str) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if out and out[-1] == a and piece == b:
            out[-1] = a + b
        else:
            out.append(piece)
    return tuple(out)


def tiny_llama(
    *,
    layers: int = 2,
    embd: int = 32,
    heads: int = 4,
    heads_kv: int = 2,
    ff: int = 64,
    kind: int = F32,
    seed: int = 0,
    n_vocab: int = 0,
) -> TinyFile:
    """A llama in parts; `n_vocab` fills the vocabulary up with words that no text holds."""
    tokens, merges = bpe()
    tokens += [f"unused{i}" for i in range(n_vocab - len(tokens) - 3)]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    types = [1] * len(tokens) + [3] * len(specials)
    tokens = tokens + specials
    head = embd // heads
    file = TinyFile(
        {
            "general.architecture": "llama",
            "general.name": "tiny llama",
            "general.file_type": {F32: 0, F16: 1, Q8_0: 7}[kind],
            "general.quantization_version": 2,
            "llama.vocab_size": len(tokens),
            "llama.context_length": 512,
            "llama.embedding_length": embd,
            "llama.block_count": layers,
            "llama.feed_forward_length": ff,
            "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": heads_kv,
            "llama.rope.dimension_count": head,
            "llama.rope.freq_base": 10000.0,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": len(tokens) - 3,
            "tokenizer.ggml.eos_token_id": len(tokens) - 1,
            "tokenizer.ggml.padding_token_id": len(tokens) - 3,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.chat_template": CHAT,
        }
    )
    rng = np.random.default_rng(seed)
    file.add("token_embd.weight", (embd, len(tokens)), rng, kind)
    file.add("output_norm.weight", (embd,), rng, one=True)
    for i in range(layers):
        block = f"blk.{i}."
        file.add(block + "attn_norm.weight", (embd,), rng, one=True)
        file.add(block + "attn_q.weight", (embd, heads * head), rng, kind)
        file.add(block + "attn_k.weight", (embd, heads_kv * head), rng, kind)
        file.add(block + "attn_v.weight", (embd, heads_kv * head), rng, kind)
        file.add(block + "attn_output.weight", (heads * head, embd), rng, kind)
        file.add(block + "ffn_norm.weight", (embd,), rng, one=True)
        file.add(block + "ffn_gate.weight", (embd, ff), rng, kind)
        file.add(block + "ffn_up.weight", (embd, ff), rng, kind)
        file.add(block + "ffn_down.weight", (ff, embd), rng, kind)
    return file


def tiny_bert(*, layers: int = 2, embd: int = 32, heads: int = 4, ff: int = 64, seed: int = 0) -> TinyFile:
    """A BERT embedding model in parts: WordPiece, mean pooling."""
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    words = sorted(set(CORPUS.split()) - set(letters))
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(f"\u2581{x}" for x in letters + words),
        *letters,
    ]
    file = TinyFile(
        {
            "general.architecture": "bert",
            "general.name": "tiny bert",
            "general.file_type": 0,
            "bert.context_length": 128,
            "bert.embedding_length": embd,
            "bert.block_count": layers,
            "bert.feed_forward_length": ff,
            "bert.attention.head_count": heads,
            "bert.attention.layer_norm_epsilon": 1e-12,
            "bert.attention.causal": False,
            "bert.pooling_type": 1,
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.token_type_count": 2,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(tokens) - 5),
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 3,
            "tokenizer.ggml.unknown_token_id": 1,
            "tokenizer.ggml.seperator_token_id": 3,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.cls_token_id": 2,
            "tokenizer.ggml.mask_token_id": 4,
        }
    )
    rng = np.random.default_rng(seed)
    file.add("token_embd.weight", (embd, len(tokens)), rng)
    file.add("token_types.weight", (embd, 2), rng)
    file.add("position_embd.weight", (embd, 128), rng)
    file.add("token_embd_norm.weight", (embd,), rng, one=True)
    file.add("token_embd_norm.bias", (embd,), rng)
    for i in range(layers):
        block = f"blk.{i}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            file.add(f"{block}{name}.weight", (embd, embd), rng)
            file.add(f"{block}{name}.bias", (embd,), rng)
        for name in ("attn_output_norm", "layer_output_norm"):
            file.add(f"{block}{name}.weight", (embd,), rng, one=True)
            file.add(f"{block}{name}.bias", (embd,), rng)
        file.add(block + "ffn_up.weight", (embd, ff), rng)
        file.add(block + "ffn_up.bias", (ff,), rng)
        file.add(block + "ffn_down.weight", (ff, embd), rng)
        file.add(block + "ffn_down.bias", (embd,), rng)
    return file


def make_tiny_llama(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    *,
    drop: Iterable[str] = (),
    **shape: int,
) -> None:
    """Write a tiny llama. `metadata` adds or replaces entries (see Typed), `drop` leaves keys out."""
    _write(tiny_llama(**shape), path, metadata, drop)


def make_tiny_bert(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    *,
    drop: Iterable[str] = (),
    **shape: int,
) -> None:
    """Write a tiny BERT embedding model."""
    _write(tiny_bert(**shape), path, metadata, drop)


def _write(
    file: TinyFile, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None, drop: Iterable[str]
) -> None:
    file.metadata.update(metadata or {})
    for key in drop:
        file.metadata.pop(key, None)
    file.write(path)


def split_tiny_llama(folder: Path, number_type: str = "u16") -> Path:
    """A tiny llama in two parts; the first one's path."""
    file = tiny_llama()
    names = list(file.tensors)
    for i, chosen in enumerate((names[:8], names[8:])):
        keys = {
            "split.no": Typed("u16" if i == 0 else number_type, i),
            "split.count": Typed("u16", 2),
            "split.tensors.count": Typed("i32", len(names)),
        }
        part = TinyFile(file.metadata | keys if i == 0 else keys, {name: file.tensors[name] for name in chosen})
        part.write(folder / f"model-{i + 1:05d}-of-00002.gguf")
    return folder / "model-00001-of-00002.gguf"
