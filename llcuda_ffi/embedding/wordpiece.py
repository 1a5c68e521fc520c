"""BERT's tokenizer for texts where libllama's differs from the models' own.

libllama leaves Hangul syllables whole, drops vowel signs of Indic scripts and splits words of more than 100 letters;
the models were trained otherwise, and such texts would get other vectors. ASCII texts are the same in both and stay
with libllama, which is faster.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..core.vocab import Vocab

_LONGEST_WORD = 100
_LONG_RUN = re.compile(r"[0-9A-Za-z]{101}")
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_BREAK, _DROP, _ALONE, _LETTER = range(4)


def needs_wordpiece(text: str) -> bool:
    """Whether libllama would read a text otherwise than the model's own tokenizer."""
    return not text.isascii() or (len(text) > _LONGEST_WORD and _LONG_RUN.search(text) is not None)


@lru_cache(maxsize=1 << 16)
def _kind(c: str) -> int:
    if c in "\t\n\r" or c.isspace():
        return _BREAK
    category = unicodedata.category(c)
    if category[0] == "C" or c == "\ufffd":
        return _DROP
    if category[0] == "P" or (c.isascii() and not c.isalnum()):
        return _ALONE
    if any(low <= ord(c) <= high for low, high in _IDEOGRAPHS):
        return _ALONE
    return _LETTER


class WordPiece:
    """Greedy longest match over the vocabulary of a GGUF, where word starts carry the mark U+2581."""

    def __init__(self, vocab: Vocab, uncased: bool) -> None:
        self._starts: dict[str, int] = {}
        self._rest: dict[str, int] = {}
        for i in range(vocab.n_tokens):
            text = vocab.text(i)
            if text.startswith("▁"):
                self._starts[text[1:]] = i
            elif not vocab.is_control(i):
                self._rest[text] = i
        special = {name: vocab.special(name) for name in ("bos", "eos", "sep")}
        self._first, self._last = special["bos"], special["eos"] if special["eos"] is not None else special["sep"]
        # bundles differ in whether they tell the unknown token; its text is fixed
        self._unknown = next((i for i in range(min(vocab.n_tokens, 1000)) if vocab.text(i) == "[UNK]"), 0)
        self._uncased = uncased

    def tokenize(self, text: str, add_special: bool = True) -> npt.NDArray[np.int32]:
        """Token ids, as the model's own tokenizer gives them."""
        ids = [token for word in self._words(text) for token in self._pieces(word)]
        if add_special:
            ids = [*([] if self._first is None else [self._first]), *ids, *([] if self._last is None else [self._last])]
        return np.array(ids, np.int32)

    def _words(self, text: str) -> Iterator[str]:
        cleaned = "".join(c for c in text if _kind(c) != _DROP)
        if self._uncased:
            marks = unicodedata.normalize("NFD", cleaned)
            cleaned = "".join(c.lower() for c in marks if unicodedata.category(c) != "Mn")
        word: list[str] = []
        for c in cleaned:
            kind = _kind(c)
            if kind == _LETTER:
                word.append(c)
                continue
            if word:
                yield "".join(word)
                word = []
            if kind == _ALONE:
                yield c
        if word:
            yield "".join(word)

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        found: list[int] = []
        start = 0
        while start < len(word):
            known = self._rest if start else self._starts
            for end in range(len(word), start, -1):
                token = known.get(word[start:end])
                if token is not None:
                    break
            else:
                return [self._unknown]
            found.append(token)
            start = end
        return found
