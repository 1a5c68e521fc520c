"""Rendered prompts as token ids: BOS once, control tokens only from the template, earlier answers as generated."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.vocab import Vocab
from ..enums import TokenAttr

Tokens = npt.NDArray[np.int32]

# private-use characters around control tokens that stand in a message: they are text there
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"

_KEPT_TURNS = 256


class PromptTokens:
    """Tokenizes the prompts of one vocabulary."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        texts = [
            vocab.piece(t, special=True).decode("utf-8", "replace")
            for t in range(vocab.n_tokens)
            if vocab.attributes(t) & TokenAttr.CONTROL
        ]
        texts = sorted({t for t in texts if len(t) > 1}, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, texts)) if texts else "(?!)")
        self._marked = re.compile(f"{_OPEN}({self._controls.pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]")
        self._turns: OrderedDict[str, Tokens] = OrderedDict()
        self._lock = threading.Lock()

    def guard(self, value: Any) -> Any:
        """`value` (plain JSON) with the control tokens in its texts, names of keys too, marked as text."""
        if isinstance(value, str):
            if _OPEN in value or _CLOSE in value:
                value = value.replace(_OPEN, "").replace(_CLOSE, "")
            return self._controls.sub(f"{_OPEN}\\g<0>{_CLOSE}", value)
        if isinstance(value, dict):
            return {self.guard(k): self.guard(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.guard(v) for v in value]
        return value

    def tokens(self, text: str, *, after: str = "") -> tuple[str, Tokens]:
        """A rendered prompt without its marks, and its token ids.

        Args:
            after: names what stands before it (an image), in the form of `remember`; "": the prompt begins with it.
        """
        if _OPEN in text or _CLOSE in text:
            pieces = self._marked.split(text)
            found = np.concatenate(
                [self._tokenize(piece or "", parse_special=i % 2 == 0) for i, piece in enumerate(pieces)]
            )
            text = "".join(piece or "" for piece in pieces)
            return text, found if after else self._with_bos(found)
        known, start = self._known(after + text)
        if start <= len(after):
            ids = self._tokenize(text)
            return text, ids if after else self._with_bos(ids)
        return text, np.concatenate([known, self._tokenize(text[start - len(after) :])])

    def split(self, text: str) -> list[str | int]:
        """`text` in pieces: texts, and the ids of its control tokens."""
        pieces = re.split(f"({self._controls.pattern})", text)
        return [int(self._tokenize(p)[0]) if i % 2 else p for i, p in enumerate(pieces) if p]

    def _tokenize(self, text: str, *, parse_special: bool = True) -> Tokens:
        if not text:
            return np.empty(0, np.int32)
        return self._vocab.tokenize(text, add_special=False, parse_special=parse_special)

    def _with_bos(self, ids: Tokens) -> Tokens:
        bos = self._vocab.bos
        if self._vocab.add_bos and bos is not None and (not len(ids) or ids[0] != bos):
            return np.concatenate([np.array([bos], np.int32), ids])
        return ids

    # --- earlier turns ---

    def remember(self, text: str, tokens: Sequence[int] | Tokens) -> None:
        """A prompt with its answer, and the tokens that the KV cache holds for it.

        A model may write a word in other tokens than the tokenizer would: with the tokens it wrote, the next turn
        finds them all in the cache.

        Args:
            text: what `tokens` was given, `after` and the text behind it, and the answer.
        """
        with self._lock:
            self._turns[text] = np.asarray(tokens, np.int32)
            self._turns.move_to_end(text)
            if len(self._turns) > _KEPT_TURNS:
                self._turns.popitem(last=False)

    def remember_answer(self, prompt: str, tokens: Tokens, answer: Sequence[int]) -> None:
        """Keep an answer's own tokens for the next turn of its conversation."""
        try:
            text = b"".join(self._vocab.piece(token, special=True) for token in answer).decode()
        except UnicodeDecodeError:
            return
        self.remember(prompt + text, [*tokens.tolist(), *answer])

    def _known(self, text: str) -> tuple[Tokens, int]:
        """The longest remembered beginning of `text`, where a control token follows it."""
        best: tuple[Tokens, int] = (np.empty(0, np.int32), 0)
        with self._lock:
            for known, tokens in self._turns.items():
                if len(known) > best[1] and text.startswith(known) and self._controls.match(text, len(known)):
                    best = tokens, len(known)
        return best
