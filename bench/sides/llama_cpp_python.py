"""llama-cpp-python: as pip compiles it here, or (extra "peer") its Python code over this package's libllama."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import TEMPERATURE, TOP_K, TOP_P, Side, serve


class LlamaCppPython(Side):
    """Its high-level class."""

    def __init__(self, model: str, threads: int, extra: dict[str, str]) -> None:
        if "peer" in extra:
            import peer

            self._package: Any = peer.boot(extra["peer"], Path(extra["bundle"]))
        else:
            import llama_cpp

            self._package = llama_cpp
        self._threads, self._extra = threads, extra
        self._llm = self._package.Llama(
            model, n_ctx=2048, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
        )
        self._embedder: Any = None

    def version(self) -> str:
        how = "its Python code, our libllama" if "peer" in self._extra else "as pip compiled it"
        return f"llama-cpp-python {self._package.__version__}, {how}"

    def _make(self, text: str, n: int, grammar: Any = None) -> int:
        prompt = self._llm.tokenize(text.encode())
        tokens = []
        # generate() does not stop at the end token; the text is made as create_completion makes it at its end
        for token in self._llm.generate(prompt, top_k=TOP_K, top_p=TOP_P, min_p=0.0, temp=TEMPERATURE, grammar=grammar):
            if grammar is not None and token == self._llm.token_eos():
                break
            tokens.append(token)
            if len(tokens) == n:
                break
        self._llm.detokenize(tokens, prev_tokens=prompt)
        return len(tokens)

    def prefill(self, text: str) -> int:
        self._llm.reset()
        self._make(text, 1)
        return len(self._llm.tokenize(text.encode()))

    def decode(self, text: str, n: int) -> int:
        self._llm.reset()
        return self._make(text, n)

    def batch(self, texts: Sequence[str], n: int) -> int:
        return sum(self.decode(text, n) for text in texts)

    def again(self, text: str) -> int:
        self._make(text, 1)
        return len(self._llm.tokenize(text.encode()))

    def structured(self, text: str, schema: dict[str, Any], n: int) -> int:
        self._llm.reset()
        grammar = self._package.LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
        return self._make(text, n, grammar)

    def embed(self, texts: Sequence[str]) -> int:
        if self._embedder is None:
            self._embedder = self._package.Llama(
                self._extra["embedding"], embedding=True, n_threads=self._threads, n_threads_batch=self._threads,
                flash_attn=True, verbose=False,
            )  # fmt: skip
        return len(self._embedder.embed(list(texts), normalize=True))


if __name__ == "__main__":
    serve(LlamaCppPython)
