"""vLLM's prompts: dicts, which LLM.generate takes."""

from __future__ import annotations

from typing import TypedDict


class TextPrompt(TypedDict):
    """A text."""

    prompt: str


class TokensPrompt(TypedDict):
    """Token ids."""

    prompt_token_ids: list[int]
