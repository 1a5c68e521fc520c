"""transformers on torch's CPU build, from the same GGUF file (which it turns into float32)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import TEMPERATURE, TOP_K, TOP_P, Side, serve


class Transformers(Side):
    """AutoModelForCausalLM.generate."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._torch, self._package = torch, transformers
        path = Path(model)
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "left"
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()

    def version(self) -> str:
        return f"transformers {self._package.__version__}, torch {self._torch.__version__}, {self._model.dtype}"

    def _make(self, texts: Sequence[str], n: int) -> tuple[int, int]:
        inputs = self._tokenizer(list(texts), return_tensors="pt", padding=len(texts) > 1)
        with self._torch.no_grad():
            made = self._model.generate(
                **inputs, do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, top_p=TOP_P, max_new_tokens=n,
                min_new_tokens=n, pad_token_id=self._tokenizer.pad_token_id,
            )  # fmt: skip
        width = inputs["input_ids"].shape[1]
        return width, (made.shape[1] - width) * len(texts)

    def prefill(self, text: str) -> int:
        return self._make([text], 1)[0]

    def decode(self, text: str, n: int) -> int:
        return self._make([text], n)[1]

    def batch(self, texts: Sequence[str], n: int) -> int:
        return self._make(texts, n)[1]


if __name__ == "__main__":
    serve(Transformers)
