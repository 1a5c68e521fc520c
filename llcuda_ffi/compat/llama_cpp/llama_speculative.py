"""llama-cpp-python's prompt lookup decoding, by its module's name."""

from __future__ import annotations

from dataclasses import dataclass


class LlamaDraftModel:
    """What drafts tokens."""


@dataclass
class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Drafts what followed the last tokens where they stood before (here `draft="ngram"`).

    Attributes:
        max_ngram_size: taken, and without effect: three tokens are looked up.
        num_pred_tokens: tokens drafted at a time.
    """

    max_ngram_size: int = 2
    num_pred_tokens: int = 10
