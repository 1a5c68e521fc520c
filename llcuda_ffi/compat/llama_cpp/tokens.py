"""The methods about tokens of llama-cpp-python's Llama."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.model import Model
from .llama_tokenizer import LlamaTokenizer


class Tokens:
    """Text to token ids and back; special tokens."""

    if TYPE_CHECKING:
        model: Model

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a text."""
        tokens: list[int] = self.model.vocab.tokenize(text, add_special=add_bos, parse_special=special).tolist()
        return tokens

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """What token ids write; with `prev_tokens`, after those."""
        vocab = self.model.vocab
        written = b"".join(vocab.piece(int(token), special=special) for token in tokens)
        starts = prev_tokens is None and len(tokens) > 0 and int(tokens[0]) == vocab.bos
        return written[1:] if starts and written.startswith(b" ") else written

    def token_bos(self) -> int:
        """The beginning-of-sequence token; -1 where there is none."""
        return -1 if self.model.vocab.bos is None else self.model.vocab.bos

    def token_eos(self) -> int:
        """The end-of-sequence token; -1 where there is none."""
        return -1 if self.model.vocab.eos is None else self.model.vocab.eos

    def token_nl(self) -> int:
        """The newline token; -1 where there is none."""
        return self._special("nl")

    def token_sep(self) -> int:
        """The separator; -1 where there is none."""
        return self._special("sep")

    def token_eot(self) -> int:
        """The end of a turn; -1 where there is none."""
        return self._special("eot")

    def token_pad(self) -> int:
        """The padding; -1 where there is none."""
        return self._special("pad")

    def token_prefix(self) -> int:
        """The mark before the prefix of an infill; -1 where there is none."""
        return self._special("fim_pre")

    def token_middle(self) -> int:
        """The mark before what is filled in; -1 where there is none."""
        return self._special("fim_mid")

    def token_suffix(self) -> int:
        """The mark before the suffix of an infill; -1 where there is none."""
        return self._special("fim_suf")

    def _special(self, name: str) -> int:
        found = self.model.vocab.special(name)
        return -1 if found is None else found

    def tokenizer(self) -> LlamaTokenizer:
        """encode and decode of this model."""
        return LlamaTokenizer(self)
