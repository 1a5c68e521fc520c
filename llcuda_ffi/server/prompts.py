"""Prompts as /v1/completions and llama.cpp's /completion take them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

from ..core.vocab import Vocab
from ..engine.media import MediaPrompt
from ..errors import InvalidRequest
from ..llama import Llama
from ..multimodal.media import Base64
from .media import MOST_MEDIA


class MediaText(NamedTuple):
    """llama.cpp's prompt with media: MARK stands in the text for each of the data, base64 or data: URLs."""

    text: str
    data: list[str]


Prompt = str | list[int] | list[Any]
MARK = "<__media__>"

_MOST = 2048
_SHORT = 8192  # characters or ids: what is tokenized well below a millisecond


@overload
def prompts_of(value: Any, name: str = ..., *, media: Literal[False] = ...) -> list[Prompt]: ...
@overload
def prompts_of(value: Any, name: str = ..., *, media: Literal[True]) -> list[Prompt | MediaText]: ...
def prompts_of(value: Any, name: str = "prompt", *, media: bool = False) -> Any:
    """The prompts of a field.

    A text, token ids, texts and ids mixed ([1, "a", 2], llama.cpp's), {"prompt_string": …}, {"content": [parts]}, or a
    list of those.

    Args:
        media: take {"prompt_string": …, "multimodal_data": […]} as a MediaText.

    Raises:
        InvalidRequest: something else, or more than 2,048.
    """
    if value is None:
        return [""]
    if isinstance(value, (str, dict)):
        return [_one(value, name, media)]
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{name} must be a text, token ids, or a list of those, and not empty; not {value!r:.60}")
    if any(type(item) is int for item in value):
        return [_one(value, name, media)]
    if len(value) > _MOST:
        raise InvalidRequest(f"{name} has {len(value)} prompts, more than {_MOST}")
    return [_one(item, f"{name}[{i}]", media) for i, item in enumerate(value)]


def _one(value: Any, name: str, media: bool) -> Prompt | MediaText:
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            if not media:
                raise InvalidRequest(f"{name}: multimodal_data is for /completion; a chat's messages may have images")
            return _media_text(value, name)
        value = _joined(value["content"], name) if "content" in value else value.get("prompt_string")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(item) is int or isinstance(item, str) for item in value):
        return value
    raise InvalidRequest(f"{name} must be a text or a list of token ids, not {value!r:.60}")


def _media_text(value: dict[str, Any], name: str) -> MediaText:
    text, data = value.get("prompt_string"), value["multimodal_data"]
    if not isinstance(text, str) or not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise InvalidRequest(f"{name} needs prompt_string, a text, and multimodal_data, a list of base64 texts")
    if len(data) > MOST_MEDIA:
        raise InvalidRequest(f"{name} has {len(data)} images and sounds, more than {MOST_MEDIA}")
    if text.count(MARK) != len(data):
        raise InvalidRequest(f"{name} has {text.count(MARK)} marks {MARK} for {len(data)} media: write one for each")
    return MediaText(text, data)


def media_prompt(llama: Llama, prompt: MediaText) -> MediaPrompt:
    """A prompt with its media encoded, which takes long.

    Raises:
        InvalidRequest: damaged data, or the model takes no such medium.
    """
    texts = prompt.text.split(MARK)
    parts: list[Any] = []
    for text, data in zip(texts, prompt.data, strict=False):
        raw: Any = data if data.lstrip()[:5].lower() == "data:" else Base64(data)
        parts += (
            [text, llama.media.read("image" if llama.media.projector.sees else "audio", raw)] if llama.media else []
        )
    return llama.media_prompt([*parts, texts[-1]])


def _joined(parts: Any, name: str) -> str:
    """The text of a message's parts."""
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise InvalidRequest(f"{name}.content must be a list of parts with text, not {parts!r:.60}")
    return "".join(part["text"] for part in parts)


def prompt_ids(vocab: Vocab, prompt: Prompt, *, special: bool = True) -> list[int]:
    """The token ids of a prompt; an empty one is the model's own beginning.

    Args:
        special: put the tokens before a text that the model wants there (BOS).

    Raises:
        InvalidRequest: ids outside the vocabulary, or an empty prompt where the model has no token to begin with.
    """
    if isinstance(prompt, str):
        ids: list[int] = vocab.tokenize(prompt, add_special=special, parse_special=True).tolist() if prompt else []
    else:
        ids = []
        for i, item in enumerate(prompt):
            if isinstance(item, str):
                ids += vocab.tokenize(item, add_special=special and i == 0, parse_special=True).tolist()
            else:
                ids.append(item)
        vocab.ids(ids)
    if not ids:
        first = vocab.bos if vocab.bos is not None else vocab.eos
        if first is None:
            raise InvalidRequest("the prompt is empty, and the model has no token to begin with: give a text")
        ids = [first]
    return ids


async def all_ids(vocab: Vocab, prompts: Sequence[Prompt], *, special: bool = True) -> list[list[int]]:
    """The token ids of prompts; the event loop does it itself where it is short: a thread would wait until it rests.

    Raises:
        as `prompt_ids`.
    """
    if sum(_length(prompt) for prompt in prompts) > _SHORT:
        return await asyncio.to_thread(lambda: [prompt_ids(vocab, prompt, special=special) for prompt in prompts])
    return [prompt_ids(vocab, prompt, special=special) for prompt in prompts]


def _length(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(i) if isinstance(i, str) else 1 for i in prompt)
