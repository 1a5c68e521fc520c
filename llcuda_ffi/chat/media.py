"""Content parts that are images or sounds: a mark in their place for the template, and the media for its prompt."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.media import MediaPrompt
from ..errors import InvalidRequest
from ..multimodal.encoder import MediaEncoder, Medium
from ..multimodal.media import Base64
from .messages import MEDIUM, Message
from .prompts import PromptTokens
from .prompts import Tokens as PromptIds

# around the number of a medium; the random name keeps what a user writes from being one
_BEGIN, _END = "\U000f0002", "\U000f0003"
IMAGES = ("image_url", "image", "input_image", "image_pil")
SOUNDS = ("input_audio", "audio", "audio_url")
_VIDEOS = ("video", "video_url", "input_video")


class ChatMedia:
    """The images and sounds of one conversation."""

    def __init__(self) -> None:
        self._name = secrets.token_hex(8)
        self._given: list[tuple[str, Any, str]] = []

    def __len__(self) -> int:
        return len(self._given)

    def take(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with a mark in place of each image and sound.

        Raises:
            InvalidRequest: a part that is of another shape than OpenAI's or transformers'.
        """
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
            return messages  # told by `normalize`
        return [self._message(message, i) for i, message in enumerate(messages)]

    def _message(self, message: Message, i: int) -> Message:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, (list, tuple)):
            return message
        parts = []
        for j, part in enumerate(content):
            kind = part.get("type") if isinstance(part, Mapping) else None
            what = f"messages[{i}]['content'][{j}]"
            if kind in _VIDEOS:
                raise InvalidRequest(f"{what} is a video: libmtmd takes images, so give some of its frames as images")
            if kind in IMAGES or kind in SOUNDS:
                self._given.append(("image" if kind in IMAGES else "audio", value_of(part, kind, what), what))
                mark = f"{_BEGIN}{self._name}:{len(self._given) - 1}{_END}"
                parts.append({"type": "text", "text": mark, MEDIUM: True})
            else:
                parts.append(part)
        return {**message, "content": parts}

    def prompt(
        self, rendered: str, tokens: PromptTokens, encoder: MediaEncoder
    ) -> tuple[MediaPrompt, tuple[str, PromptIds]]:
        """The prompt that a template rendered, its marks replaced by what they stand for.

        Returns:
            it, and the text after the last medium with its token ids, in the form of `PromptTokens.remember`.

        Raises:
            InvalidRequest: a medium cannot be read or encoded, or the template left it out or wrote it twice.
        """
        pieces = re.split(f"{_BEGIN}{self._name}:(\\d+){_END}", rendered)
        numbers = [int(number) for number in pieces[1::2]]
        if sorted(numbers) != list(range(len(self._given))):
            raise InvalidRequest(
                f"the chat template writes {len(numbers)} of {len(self._given)} images and sounds: it takes texts only"
            )
        if not pieces[-1]:
            raise InvalidRequest("a prompt must not end with an image or a sound: add the text to go on from")
        media = [self._read(number, encoder) for number in numbers]  # before the first is encoded, which takes long
        parts: list[PromptIds | Medium] = []
        texts = []
        after = ""
        for i, piece in enumerate(pieces):
            if i % 2 == 0:
                text, ids = tokens.tokens(piece, after=after)
                texts.append(text)
                parts.append(ids)
                continue
            medium = self._encoded(int(piece), media[i // 2], encoder)
            parts.append(medium)
            seen = hashlib.sha256((after + text).encode("utf-8", "surrogatepass") + medium.key)
            after = f"{_BEGIN}{seen.hexdigest()}{_END}"
            texts.append(f"<{self._given[int(piece)][0]}>")
        return encoder.prompt(parts, "".join(texts)), (after + text, ids)

    def _read(self, number: int, encoder: MediaEncoder) -> Medium:
        kind, value, what = self._given[number]
        try:
            return encoder.read(kind, value)
        except InvalidRequest as error:
            raise type(error)(f"{what}: {error}") from None

    def _encoded(self, number: int, medium: Medium, encoder: MediaEncoder) -> Medium:
        try:
            return encoder.encode(medium)
        except InvalidRequest as error:
            raise type(error)(f"{self._given[number][2]}: {error}") from None


def value_of(part: Mapping[str, Any], kind: str, what: str) -> Any:
    """What stands in a part: {"type": "image_url", "image_url": {"url": …}}, {"type": "image", "image": …}, …

    Raises:
        InvalidRequest: nothing does.
    """
    found = part.get(kind)
    if found is None:
        found = next((part[k] for k in _HOLDERS if part.get(k) is not None), None)
    if isinstance(found, Mapping):
        inner: Mapping[str, Any] = found
        encoded = inner.get("base64", inner.get("data"))
        if kind in SOUNDS and inner.get("array") is not None:  # of Hugging Face's datasets
            return inner["array"], inner.get("sampling_rate")
        if isinstance(encoded, str) and encoded.lstrip()[:5].lower() != "data:":  # OpenAI's sounds, Anthropic's images
            return Base64(encoded)
        found = next((inner[k] for k in ("url", "bytes", "path", "data", "base64") if inner.get(k) is not None), None)
    elif found is part.get("base64") and isinstance(found, str) and found.lstrip()[:5].lower() != "data:":
        return Base64(found)
    if found is None:
        raise InvalidRequest(f"{what} is of type {kind!r} without one: {{'type': {kind!r}, {kind!r}: …}}")
    return found


# keys of a part that hold a medium: of OpenAI, transformers, Anthropic
_HOLDERS = ("image", "image_url", "audio", "audio_url", "url", "path", "base64", "data", "source")
