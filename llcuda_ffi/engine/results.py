"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "eog", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural log probability of a chosen token, before any sampler changed the distribution.

    Attributes:
        token: its id.
        bytes: what it writes.
        logprob: its log probability.
        top: the likeliest tokens as (id, logprob), likeliest first.
    """

    token: int
    bytes: bytes
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted.

    Attributes:
        prompt_tokens: length of the prompt.
        cached_tokens: how many of those were not computed again.
        completion_tokens: tokens generated.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, from one clock.

    Attributes:
        queue_s: waiting for a slot.
        prompt_s: from the slot to the first token.
        ttft_s: from submit to the first token.
        decode_s: from the first token to the last.
        tokens_per_s: generated tokens after the first, over decode_s; 0 for a single token.
        drafted, accepted: tokens proposed and kept by speculative decoding.
    """

    queue_s: float
    prompt_s: float
    ttft_s: float
    decode_s: float
    tokens_per_s: float
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request.

    Attributes:
        text: the text generated, without the stop string.
        token_ids: every token generated, an end token included.
        finish_reason: "stop" (a stop string), "eog" (the model ended), "length" (max_tokens, or the context is
            full) or "cancelled" (also a timeout; the text is what there was).
        logprobs: one entry for each token, when asked for.
        usage, timings: counts and seconds.
        seed: the seed of its sampling; given again it gives the same text. None for greedy.
        parsed: the value of a structured output, None otherwise.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: list[TokenLogprob] | None = None
    seed: int | None = None
    parsed: Any = field(default=None)

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)  # not frozen: a frozen one takes three times as long to make, for each token
class Chunk:
    """A piece of a stream.

    Attributes:
        text: new text, whole characters; may be empty in the last chunk.
        token_ids: the tokens it came from; a token may come before its text.
        logprobs: one entry for each token, when asked for.
        finish_reason: None until the last chunk.
        completion: the whole result, in the last chunk only.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    completion: Completion | None = None

    def __str__(self) -> str:
        return self.text
