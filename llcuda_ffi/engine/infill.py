"""Prompts for filling in the middle: the model writes what stands between a prefix and a suffix."""

from __future__ import annotations

import numpy as np

from ..core.vocab import Vocab
from ..errors import InvalidRequest, UnsupportedModel
from .request import Tokens


def infill_tokens(vocab: Vocab, prefix: str, suffix: str) -> Tokens:
    """[BOS] <prefix mark> prefix <suffix mark> suffix <middle mark>, as llama-server's /infill orders them.

    Nothing in the texts is read as a control token.

    Raises:
        UnsupportedModel: the vocabulary lacks one of the marks.
        InvalidRequest: not texts.
    """
    marks = {name: vocab.special(name) for name in ("fim_pre", "fim_suf", "fim_mid")}
    missing = [name for name, token in marks.items() if token is None]
    if missing:
        raise UnsupportedModel(
            f"the model has no tokens for filling in the middle ({', '.join(missing)}): use a code model such as "
            "Qwen2.5-Coder, CodeLlama or StarCoder2"
        )
    parts: list[int | None] = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    for mark, text in (("fim_pre", prefix), ("fim_suf", suffix), ("fim_mid", "")):
        if not isinstance(text, str):
            raise InvalidRequest(f"prefix and suffix must be texts, not {type(text).__name__}")
        parts += [marks[mark], *vocab.tokenize(text, add_special=False, parse_special=False).tolist()]
    return np.array(parts, np.int32)
