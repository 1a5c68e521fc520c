"""The texts of the embedding tests; data/minilm_reference.npz has the vectors that sentence-transformers gives them.

It is written by `python -m tests.support.embedding_texts FOLDER`, FOLDER holding all-MiniLM-L6-v2 as it is published.
"""

from __future__ import annotations

import sys
from pathlib import Path

REFERENCE = Path(__file__).parents[1] / "data" / "minilm_reference.npz"

_WORDS = ["river", "stone", "cloud", "paper", "music", "window", "garden", "bridge", "winter", "engine"]

TEXTS = [
    "",
    "a",
    "hello",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "A cat sat on the mat; the mat was red.",
    "How do I install the package without a compiler?",
    "Installing without building from source",
    "def add(a, b):\n    return a + b",
    "SELECT name, age FROM people WHERE age > 30 ORDER BY name;",
    "E = mc^2, and 3.14159 is close to π",
    "Grüße aus München, schöne Straße",
    "naïve café résumé",
    "Привет, мир",
    "你好，世界。今天天气很好。",
    "こんにちは世界",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "😀 🎉 🚀",
    "I love pizza 🍕 and coffee ☕!",
    "   leading and trailing spaces   ",
    "tabs\tand\nnew\r\nlines",
    "!!!???...---",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 150,
    "UPPER lower MiXeD",
    "https://example.org/path?query=value#fragment",
    "42",
    "zero\u200bwidth and non\u00a0breaking",
    "The committee met on Tuesday to discuss the budget for the coming year, and after a long debate agreed to "
    "postpone the decision until the figures for the last quarter were known.",
    *[" ".join(_WORDS[(i * k) % 10] for i in range(n)) for k, n in ((1, 20), (3, 50), (7, 90), (9, 130), (3, 200))],
    " ".join(_WORDS[i % 10] for i in range(254)),  # 256 tokens with the two marks: exactly the limit
]


def main(folder: str) -> None:
    """Compute the reference."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    vectors = model.encode(TEXTS, normalize_embeddings=True)
    tokens = [len(model.tokenizer(text)["input_ids"]) for text in TEXTS]
    np.savez_compressed(REFERENCE, vectors=vectors.astype(np.float16), tokens=np.array(tokens, np.int32))
    print(vectors.shape, tokens)


if __name__ == "__main__":
    main(sys.argv[1])
