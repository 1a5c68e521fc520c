"""Images and sounds that clients send: data only. Nothing is fetched for them, and no file of this machine is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..chat.media import IMAGES, SOUNDS, value_of
from ..errors import InvalidRequest
from ..multimodal.media import Base64

MOST_MEDIA = 16  # of one conversation


def check_media(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check that each image and sound is a data: URL or base64.

    Raises:
        InvalidRequest: one is an address or a path, or there are more than MOST_MEDIA.
    """
    n = 0
    for i, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for j, part in enumerate(content):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in IMAGES and kind not in SOUNDS:
                continue
            n += 1
            what = f"messages[{i}].content[{j}]"
            value = value_of(part, kind, what)
            if not isinstance(value, Base64) and not (isinstance(value, str) and value.lstrip()[:5].lower() == "data:"):
                raise InvalidRequest(
                    f"{what}: this server takes images and sounds as data: URLs (or base64) only: it fetches nothing "
                    "and reads no files for a client"
                )
    if n > MOST_MEDIA:
        raise InvalidRequest(f"the conversation has {n} images and sounds, more than {MOST_MEDIA}")


def modalities(media: Any) -> dict[str, bool]:
    """What a model takes besides text; `media` is its encoder or None."""
    if media is None:
        return {"vision": False, "audio": False}
    return {"vision": media.projector.sees, "audio": media.projector.hears}
