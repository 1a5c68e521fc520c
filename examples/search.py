"""Semantic search: texts to vectors, the nearest to a question."""

from llcuda_ffi import Embedder

texts = [
    "The llama is a domesticated animal of the Andes.",
    "Bread rises because yeast makes gas.",
    "A GPU computes thousands of products at once.",
    "The Nile is the longest river of Africa.",
]

with Embedder("all-minilm-l6-v2") as embedder:
    documents = embedder.encode(texts)
    for question in ("How does baking work?", "Which processors are fast at matrices?"):
        scores = documents @ embedder.encode(question)
        print(f"{question}\n  {scores.max():.2f} {texts[int(scores.argmax())]}")
