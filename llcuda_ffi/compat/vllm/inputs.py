"""vLLM's prompts: dicts, which LLM.generate takes."""

from __future__ import annotations

from typing import Any, TypedDict


class _Text(TypedDict):
    prompt: str


class TextPrompt(_Text, total=False):
    """A text; with `multi_modal_data` ({"image": …, "audio": …}) one with a mark such as <image> for each medium."""

    multi_modal_data: dict[str, Any]


class TokensPrompt(TypedDict):
    """Token ids."""

    prompt_token_ids: list[int]


PromptType = str | list[int] | TextPrompt | TokensPrompt
