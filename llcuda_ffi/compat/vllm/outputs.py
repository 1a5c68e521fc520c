"""Results in vLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.results import Chunk, Completion, TokenLogprob

_FINISH = {"eog": "stop", "stop": "stop", "length": "length", "cancelled": "abort"}


@dataclass
class Logprob:
    """The log probability of one token.

    Attributes:
        rank: its place among the likeliest, from 1; None where it is not among those that were asked for.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


Position = dict[int, Logprob]


@dataclass
class CompletionOutput:
    """One of n completions."""

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[Position] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None

    def finished(self) -> bool:
        """Whether it is over."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """A prompt and its completions."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[Position | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: Any = None
    lora_request: Any = None
    num_cached_tokens: int | None = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None


@dataclass
class Embedding:
    """A vector."""

    embedding: list[float]

    @property
    def data(self) -> npt.NDArray[np.float32]:
        """As `embedding`, an array where vLLM has a tensor."""
        return np.array(self.embedding, np.float32)

    @property
    def hidden_size(self) -> int:
        """Its numbers."""
        return len(self.embedding)


@dataclass
class EmbeddingRequestOutput:
    """A text and its vector."""

    request_id: str
    outputs: Embedding
    prompt_token_ids: list[int]
    finished: bool = True


@dataclass
class Score:
    """A score."""

    score: float


@dataclass
class ScoringRequestOutput:
    """A pair of texts and its score."""

    request_id: str
    outputs: Score
    prompt_token_ids: list[int]
    finished: bool = True


def request_output(request_id: str, completions: Sequence[Completion]) -> RequestOutput:
    """The result of one prompt."""
    first = completions[0]
    scores = first.prompt_logprobs
    return RequestOutput(
        request_id,
        first.prompt,
        first.prompt_token_ids,
        None if scores is None else [None if entry is None else position(entry) for entry in scores],
        [completion_output(done) for done in completions],
        True,
        first.timings,
        num_cached_tokens=first.usage.cached_tokens,
    )


def completion_output(done: Completion) -> CompletionOutput:
    """One completion."""
    return CompletionOutput(
        done.index,
        done.text,
        done.token_ids,
        done.cumulative_logprob,
        None if done.logprobs is None else [position(entry) for entry in done.logprobs],
        _FINISH[done.finish_reason],
        done.stop_reason,
    )


def chunk_output(chunk: Chunk) -> CompletionOutput:
    """What a chunk of a stream brings to its completion."""
    scored, done = chunk.logprobs, chunk.completion
    return CompletionOutput(
        chunk.index,
        chunk.text,
        chunk.token_ids,
        None if scored is None else sum(entry.logprob for entry in scored),
        None if scored is None else [position(entry) for entry in scored],
        None if done is None else _FINISH[done.finish_reason],
        None if done is None else done.stop_reason,
    )


def position(entry: TokenLogprob) -> Position:
    """The chosen token of a position, and then the likeliest ones, by token id."""
    found = {entry.token: Logprob(entry.logprob, None, entry.bytes.decode("utf-8", "replace"))}
    tops = zip(entry.top, entry.top_bytes, strict=True)
    for rank, ((token, value), piece) in enumerate(tops, 1):
        found[token] = Logprob(value, rank, piece.decode("utf-8", "replace"))
    return found
