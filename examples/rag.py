"""Retrieval and an answer: the nearest passage goes into the prompt."""

from llcuda_ffi import Embedder, Llama

passages = [
    "The workshop opens at nine and closes at five. On Sundays it is closed.",
    "A ticket costs twelve euros; children under six are free.",
    "Bus 14 stops in front of the gate.",
]
question = "What does a ticket cost?"

with Embedder("all-minilm-l6-v2") as embedder:
    best = passages[int((embedder.encode(passages) @ embedder.encode(question)).argmax())]

with Llama("smollm2-135m", n_ctx=1024, n_parallel=1) as llm:
    prompt = f"Use this text: {best}\n\nQuestion: {question}"
    answer = llm.chat([{"role": "user", "content": prompt}], temperature=0, max_tokens=40)
    print(f"found: {best}\nanswer: {answer.text}")
