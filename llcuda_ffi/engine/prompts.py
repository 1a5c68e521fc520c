"""Prompts: what may be given as one, or as many, and the one for filling in the middle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.vocab import Vocab
from ..errors import InvalidRequest, UnsupportedModel
from ..params import shown
from .media import MediaPrompt
from .request import Tokens

# a text, its bytes, token ids, or {"prompt": text} or {"prompt_token_ids": ids}
Prompt = str | bytes | Sequence[int] | Tokens | Mapping[str, Any] | MediaPrompt

_FORMS = "a text, token ids, {'prompt': text} or {'prompt_token_ids': ids}"


def split_prompts(prompt: Prompt | Iterable[Prompt]) -> tuple[list[Prompt], bool]:
    """The prompts, and whether there was a list of them rather than one.

    Integers in one row are one prompt, its token ids. A list, a pandas or Polars Series, an array, a generator or any
    other iterable of texts are many.

    Raises:
        InvalidRequest: it is none of those.
    """
    if isinstance(prompt, (str, bytes, Mapping, MediaPrompt)) or (
        isinstance(prompt, list) and prompt and type(prompt[0]) is int  # thousands are not looked at one by one
    ):
        return [prompt], False
    if hasattr(prompt, "columns"):  # pandas and Polars would give the names of the columns, or the columns
        raise InvalidRequest("a table is no list of prompts: give one of its columns, such as table['prompt']")
    if isinstance(prompt, np.ndarray) and prompt.ndim:
        if prompt.ndim == 1 and prompt.dtype.kind in "iu":
            return [prompt], False
        return [_plain(one) for one in prompt], True
    if not isinstance(prompt, Iterable) or isinstance(prompt, np.ndarray):
        raise InvalidRequest(f"a prompt must be {_FORMS}, or a list of those, not {_what(prompt)}")
    found = [_plain(one) for one in prompt]
    if found and isinstance(found[0], (int, np.integer)):
        return [found], False
    return found, True


def prompt_tokens(vocab: Vocab, prompt: Prompt) -> tuple[Tokens, str | None]:
    """A prompt's token ids, and its text where it was one.

    A text's BOS is added where it does not begin with it, and control tokens in it are read as such.

    Raises:
        InvalidRequest: an empty prompt, ids outside the vocabulary, or something that is no prompt.
    """
    if isinstance(prompt, MediaPrompt):
        return prompt.tokens, prompt.text
    given: Any = _inner(prompt) if isinstance(prompt, Mapping) else prompt
    text: str | None = None
    if isinstance(given, (str, bytes)):
        text = given if isinstance(given, str) else given.decode("utf-8", "replace")
        ids = vocab.tokenize(given, add_special=True, parse_special=True) if given else None
        if ids is not None and vocab.add_bos and len(ids) > 1 and ids[0] == ids[1] == vocab.bos:
            ids = ids[1:]  # the text, a chat template's perhaps, begins with it already
    elif isinstance(given, Sequence) and given and isinstance(given[0], (str, bytes)):
        raise InvalidRequest("one prompt is wanted here, not a list of texts: generate() takes lists")
    elif isinstance(given, Iterable):
        ids = vocab.ids(given)
    else:
        raise InvalidRequest(f"a prompt must be {_FORMS}, not {_what(given)}")
    if ids is None or not len(ids):
        raise InvalidRequest("the prompt is empty: give a text, or token ids such as [vocab.bos]")
    return ids, text


def _inner(prompt: Mapping[str, Any]) -> Any:
    """What is under the one key of a mapping."""
    ids, text = prompt.get("prompt_token_ids"), prompt.get("prompt")
    unknown = sorted(map(str, prompt.keys() - {"prompt", "prompt_token_ids"}))
    if unknown or (ids is None and text is None):
        raise InvalidRequest(f"a prompt must be {_FORMS}, not a mapping of {', '.join(map(str, prompt)) or 'nothing'}")
    return text if ids is None else ids


def _what(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__} ({shown(value)})"


def _plain(one: Any) -> Any:
    """numpy's texts as str; an iterator as a list."""
    if isinstance(one, np.str_):
        return str(one)
    return list(one) if isinstance(one, Iterator) else one


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
