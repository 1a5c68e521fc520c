"""vLLM's prompts with images and sounds: {"prompt": "<image> …", "multi_modal_data": {"image": …}}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...engine.media import MediaPrompt
from ...errors import InvalidRequest
from ...llama import Llama

# what models' prompts in vLLM write where an image or a sound is; the projector writes its own marks around it
_IMAGE = (
    r"(?:<\|vision_start\|>)?<\|image_pad\|>(?:<\|vision_end\|>)?|<\|image(?:_\d+)?\|>|<image>(?:\./</image>)?|"
    r"<start_of_image>|<image_soft_token>|\[IMG\]|<__media__>"
)
_SOUND = r"(?:<\|audio_bos\|>)?<\|AUDIO\|>(?:<\|audio_eos\|>)?|<\|audio(?:_\d+)?\|>|<audio>|<audio_soft_token>"
_PLACES = re.compile(f"(?P<image>{_IMAGE})|(?P<audio>{_SOUND})")


def media_prompt(llama: Llama, prompt: Any) -> Any:
    """A prompt of vLLM's as one of Llama's; what has no media stays as it is.

    Raises:
        InvalidRequest: the marks in the text are not as many as the media, or a medium of another kind.
    """
    if not isinstance(prompt, Mapping):
        return prompt
    if not prompt.get("multi_modal_data"):
        return {name: value for name, value in prompt.items() if value is not None}
    if not isinstance(prompt["multi_modal_data"], Mapping):
        raise InvalidRequest("multi_modal_data must be a mapping with 'image' and 'audio'")
    given: dict[str, list[Any]] = {}
    for kind, value in prompt["multi_modal_data"].items():
        if kind not in ("image", "audio"):
            raise InvalidRequest(f"multi_modal_data has {kind!r:.40}: it takes 'image' and 'audio'; a video as images")
        given[kind] = list(value) if isinstance(value, list) else [value]
    text = prompt.get("prompt")
    if not isinstance(text, str):
        raise InvalidRequest("multi_modal_data needs the prompt as a text, with a mark such as <image> for each medium")
    parts: list[Any] = []
    end = 0
    used = dict.fromkeys(given, 0)
    for found in _PLACES.finditer(text):
        kind = str(found.lastgroup)
        if kind not in given:
            continue
        parts.append(text[end : found.start()])
        end = found.end()
        if used[kind] < len(given[kind]):
            parts.append(_medium(kind, given[kind][used[kind]]))
        used[kind] += 1
    for kind, n in used.items():
        if n != len(given[kind]):
            raise InvalidRequest(
                f"the prompt has {n} marks of kind {kind!r} for {len(given[kind])} in multi_modal_data: write one such "
                f"as <{kind}> for each"
            )
    made: MediaPrompt = llama.media_prompt([*(part for part in parts if not _empty(part)), text[end:]])
    return made


def _empty(part: Any) -> bool:
    return isinstance(part, str) and not part


def _medium(kind: str, value: Any) -> Any:
    if isinstance(value, (str, bytes)) and kind == "image":
        raise InvalidRequest("multi_modal_data takes images as PIL images or arrays; conversations take paths and URLs")
    if kind == "audio" and not isinstance(value, tuple):
        raise InvalidRequest("multi_modal_data takes sounds as (samples, rate)")
    return value
