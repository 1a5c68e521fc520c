"""llama-cpp-python's tokenizers, by their module's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import InvalidRequest


class BaseLlamaTokenizer:
    """What every tokenizer is."""


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of a Llama of this package."""

    def __init__(self, llama: Any) -> None:
        self._llama = llama

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of a text."""
        found: list[int] = self._llama.tokenize(text, add_bos, special)
        return found

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """What token ids write."""
        found: bytes = self._llama.detokenize(tokens, prev_tokens, special)
        return found

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of a text."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self.detokenize(tokens).decode("utf-8", "ignore")


class LlamaHFTokenizer:
    """Not here: the model's file has its tokenizer."""

    @classmethod
    def from_pretrained(cls, path: str) -> LlamaHFTokenizer:
        """Raise InvalidRequest: leave `tokenizer=` out."""
        raise InvalidRequest("the model's file has its tokenizer: leave tokenizer= out")
