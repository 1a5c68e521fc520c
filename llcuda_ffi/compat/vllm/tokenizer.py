"""The tokenizer that LLM.get_tokenizer gives, with the names of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...llama import Llama


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size, bos_token_id, eos_token_id: of the model.
    """

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self._controls: frozenset[int] | None = None
        vocab = llama.vocab
        self.vocab_size, self.bos_token_id, self.eos_token_id = vocab.n_tokens, vocab.bos, vocab.eos

        self.bos_token, self.eos_token = (None if t is None else vocab.text(t) for t in (vocab.bos, vocab.eos))

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; control tokens in it are read as such."""
        ids: list[int] = self._llama.vocab.tokenize(text, add_special=add_special_tokens, parse_special=True).tolist()
        return ids

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        """{"input_ids": …} of a text or texts."""
        if isinstance(text, str):
            return {"input_ids": self.encode(text, add_special_tokens)}
        return {"input_ids": [self.encode(one, add_special_tokens) for one in text]}

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self._llama.vocab.detokenize(ids, special=not skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        """The texts of several."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's texts of token ids."""
        return [self._llama.vocab.text(int(token)) for token in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        """The token id of the vocabulary's text, None where it has none; or those of several."""
        known = self.get_vocab()
        return known.get(tokens) if isinstance(tokens, str) else [known.get(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        """Every token's text and id."""
        return {self._llama.vocab.text(token): token for token in range(self.vocab_size)}

    @property
    def all_special_ids(self) -> list[int]:
        """The control tokens."""
        return sorted(self.controls())

    def controls(self) -> frozenset[int]:
        """The control tokens, looked up once."""
        if self._controls is None:
            self._controls = frozenset(filter(self._llama.vocab.is_control, range(self.vocab_size)))
        return self._controls

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str | list[int]:
        """The prompt of a conversation, as text or ids."""
        text = self._llama.chat_prompt(
            conversation,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=variables or None,
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text
