"""Tokenizes with one vocabulary in a process of its own, JSON out:

    python -m tests.support.tokenizer_worker FILE.gguf MODE

MODE "texts": for each text of FILE.gguf.inp what libllama gives when called directly, what Vocab gives for str and
bytes, and the text that comes back; then odd texts, which give a number of tokens or an exception of ours.
MODE "megabyte": a long run of one character.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from llcuda_ffi.core.model import Model
from llcuda_ffi.core.vocab import Vocab
from llcuda_ffi.errors import LlcudaError

SEPARATOR = b"\n__ggml_vocab_test__\n"
EXTREMES: dict[str, str | bytes] = {
    "lone surrogate": "a\ud800b\udfff",
    "NUL": "a\0b\0\0",
    "NUL bytes": b"\0\0a\0",
    "invalid UTF-8": b"\xff\xfe\xc3(\xe2\x82 \xf0\x9f",
    "every byte": bytes(range(256)),
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "combining": "e" + "\u0301" * 500,
    "right to left": "\u202eשלום\u202c مرحبا",
    "control tokens as text": "<|endoftext|></s><s>[MASK]<unk><0x0A>",
}
MEGABYTE: dict[str, str | bytes] = {"1 MB of !": "!" * 1_000_000}


def direct(vocab: Vocab, raw: bytes) -> list[int]:
    """llama_tokenize itself."""
    tokens = np.zeros(len(raw) + 16, np.int32)
    n = vocab._lib.llama_tokenize(
        vocab.pointer, raw, len(raw), vocab._ffi.from_buffer("llama_token[]", tokens), len(tokens), False, False
    )
    return [int(x) for x in tokens[: max(0, n)]]


def vectors(vocab: Vocab, path: Path) -> list[dict[str, Any]]:
    """One record for each text."""
    found = []
    for raw in Path(f"{path}.inp").read_bytes().split(SEPARATOR):
        text = raw.decode("utf-8")
        ids = vocab.tokenize(text, add_special=False)
        found.append(
            {
                "text": text,
                "direct": direct(vocab, raw),
                "str": ids.tolist(),
                "bytes": vocab.tokenize(raw, add_special=False).tolist(),
                "back": vocab.detokenize(ids),
                "pieces": b"".join(vocab.piece(int(token)) for token in ids).decode("utf-8", "replace"),
            }
        )
    return found


def extremes(vocab: Vocab, texts: dict[str, str | bytes]) -> dict[str, Any]:
    """The number of tokens, or the exception."""
    found: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            ids = vocab.tokenize(text)
            vocab.detokenize(ids)
            found[name] = len(ids)
        except LlcudaError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main() -> None:
    path, mode = Path(sys.argv[1]), sys.argv[2]
    with Model.load(path, vocab_only=True) as model:
        if mode == "megabyte":
            print(json.dumps(extremes(model.vocab, MEGABYTE)))
        else:
            there = Path(f"{path}.inp").exists()
            print(json.dumps([vectors(model.vocab, path) if there else [], extremes(model.vocab, EXTREMES)]))


if __name__ == "__main__":
    main()
