"""What a request gives back."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal

from ..errors import InvalidRequest
from ..html_view import block, counted, small
from ..params import items

FinishReason = Literal["stop", "length", "eog", "cancelled"]
Pieces = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural log probability of a chosen token, before any sampler changed the distribution.

    Attributes:
        token: its id.
        bytes: what it writes.
        logprob: its log probability.
        top: the likeliest tokens as (id, logprob), likeliest first.
        top_bytes: what each of those writes.
    """

    token: int
    bytes: bytes
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    top_bytes: Pieces = ()


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


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Completion(Generic[T]):
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
        stop_reason: the text of `stop` or the token of `stop_token_ids` that ended it, None for other ends.
        prompt: the text that was asked; None where it was token ids.
        prompt_token_ids: its tokens.
        prompt_logprobs: one entry for each token of the prompt, None for the first, when asked for.
        index: which of n completions of the prompt it is.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: list[TokenLogprob] | None = None
    seed: int | None = None
    parsed: T = field(default=None)  # type: ignore[assignment] # T is Any or allows None
    stop_reason: str | int | None = None
    prompt: str | None = field(default=None, repr=False)
    prompt_token_ids: list[int] = field(default_factory=list, repr=False)
    prompt_logprobs: list[TokenLogprob | None] | None = field(default=None, repr=False)
    index: int = 0

    @property
    def cumulative_logprob(self) -> float | None:
        """The log probability of the whole completion; None where no log probabilities were asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold; a token's bytes are a list of numbers."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_json(self, **options: Any) -> str:
        """`to_dict` as JSON; the options are those of json.dumps."""
        return json.dumps(self.to_dict(), **{"ensure_ascii": False, **options})

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        parsed = "" if self.parsed is None else block(repr(self.parsed))
        ended = f"ended by {self.stop_reason!r}" if self.finish_reason == "stop" else self.finish_reason
        return block(self.text) + parsed + small(ended, *counted(self.usage, self.timings.tokens_per_s))


@dataclass(slots=True)  # not frozen: a frozen one takes three times as long to make, for each token
class Chunk:
    """A piece of a stream.

    Attributes:
        text: new text, whole characters; may be empty in the last chunk.
        token_ids: the tokens it came from; a token may come before its text.
        logprobs: one entry for each token, when asked for.
        finish_reason: None until the last chunk.
        completion: the whole result, in the last chunk only.
        index: which of n completions it belongs to.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    completion: Completion | None = None
    index: int = 0

    def __str__(self) -> str:
        return self.text


def chunks_of_each(chunks: Iterable[Chunk], n: int) -> list[list[Chunk]]:
    """The chunks of each of n completions of a prompt.

    Raises:
        InvalidRequest: one is no chunk, or of another completion.
    """
    found: list[list[Chunk]] = [[] for _ in range(n)]
    for chunk in items("begun", chunks):
        if not isinstance(chunk, Chunk) or not 0 <= chunk.index < n:
            raise InvalidRequest(f"begun must be chunks of a stream of n={n} completions, not {chunk!r:.80}")
        found[chunk.index].append(chunk)
    return found


def to_plain(value: Any) -> Any:
    """A value as dicts, lists, texts and numbers: dataclasses and pydantic models by their fields, bytes as a list."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    return list(value) if isinstance(value, bytes) else value
