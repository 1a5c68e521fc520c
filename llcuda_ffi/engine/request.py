"""A request on its way through the scheduler: what was asked, and what each part of the engine knows of it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import numpy.typing as npt

from ..core.adapter import LoraAdapter
from ..core.vocab import Vocab
from ..sampling_params import SamplingParams
from .media import MediaPrompt
from .output import ChunkQueue, Output
from .results import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from .sampling.chain import TokenSampler
from .sampling.constraint import Constraint
from .sampling.logit_steps import LogitStep, logit_steps

Tokens = npt.NDArray[np.int32]

_numbers = itertools.count()

# adapters with their scales
Adapters = tuple[tuple[LoraAdapter, float], ...]


@dataclass(slots=True)
class Place:
    """A request's place among the others.

    Attributes:
        number: counts up in order of arrival.
        arrival, deadline: seconds of perf_counter; no deadline is None.
        group: the first of n completions of one prompt, for the others.
        replica: which scheduler has it, of several.
        cancelled: whether its caller gave it up.
        alone: its logits were not numbers: who caused that shows without company.
        whole: what the device leaves of its rows does not tell its next token: they are read whole.
    """

    arrival: float
    deadline: float | None
    number: int = field(default_factory=lambda: next(_numbers))
    group: Request | None = None
    replica: int = 0
    cancelled: bool = False
    alone: bool = False
    whole: bool = False


@dataclass(slots=True)
class Progress:
    """What was done for a request, and when, in seconds of perf_counter.

    Attributes:
        t_slot, t_first, t_last: when it got a slot, its first and its last token; 0.0 before.
        cached_tokens: tokens of the prompt that were not computed.
        begun: tokens that an earlier stream of the request gave.
        dropped: tokens after the first `keep` that shifts have taken out of the context.
        drafted, accepted: tokens of speculative decoding.
    """

    t_slot: float = 0.0
    t_first: float = 0.0
    t_last: float = 0.0
    cached_tokens: int = 0
    begun: int = 0
    dropped: int = 0
    drafted: int = 0
    accepted: int = 0

    def token(self, now: float) -> None:
        """A token was chosen."""
        self.t_last = now
        if not self.t_first:
            self.t_first = now

    def timings(self, arrival: float, n: int) -> Timings:
        """Of `n` tokens, `begun` among them."""
        n -= self.begun
        decode_s = max(0.0, self.t_last - self.t_first)
        return Timings(
            queue_s=(self.t_slot or perf_counter()) - arrival,
            prompt_s=max(0.0, self.t_first - self.t_slot),
            ttft_s=max(0.0, self.t_first - arrival),
            decode_s=decode_s,
            tokens_per_s=(n - 1) / decode_s if n > 1 and decode_s > 0 else 0.0,
            drafted=self.drafted,
            accepted=self.accepted,
        )


class Request:
    """One prompt and what has been generated for it.

    Attributes:
        prompt: int32 token ids.
        params: its settings.
        limit: most tokens to generate, max_tokens and the context considered.
        seed: of its sampler.
        steps: what changes its logits before they are sampled.
        prompt_text: the prompt as it was given, where that was a text.
        prompt_logprobs: log probabilities of the prompt's tokens, where they are asked for and so far.
        index: which of n completions of the prompt it is.
        begun: chunks of an earlier stream of the same request, which it goes on from.
        media: images and sounds of the prompt, None where it is text alone.
        adapters: LoRA adapters of this request alone; None: those that the context has for all requests.
        place: its place in the queue.
        sampler: what chooses its tokens, while it has a slot.
        output: what it has written.
        progress: its times and counts.
        completion: the result, once `done`.
        error: the exception that ended it, once `done`.
        done: whether it is over; then exactly one of completion and error is set.
        wake: set when something happened, for a thread that waits.
    """

    __slots__ = (
        "adapters",
        "begun",
        "chunks",
        "completion",
        "done",
        "error",
        "index",
        "limit",
        "media",
        "output",
        "params",
        "place",
        "progress",
        "prompt",
        "prompt_logprobs",
        "prompt_text",
        "sampler",
        "seed",
        "steps",
        "wake",
    )

    def __init__(
        self,
        prompt: Tokens,
        params: SamplingParams,
        vocab: Vocab,
        limit: int,
        seed: int,
        *,
        constraint: Constraint | None = None,
        shown: Set[int] = frozenset(),
        stream: bool = False,
        prompt_text: str | None = None,
        media: MediaPrompt | None = None,
    ) -> None:
        """
        Args:
            shown: control tokens that are written into the text.
            stream: whether chunks are made, in `chunks`.
            prompt_text: the prompt as it was given, where that was a text.
            media: where embeddings stand in `prompt`.

        Raises:
            InvalidRequest: a token or word of the settings is not of the vocabulary.
        """
        self.prompt, self.params, self.limit, self.seed = prompt, params, limit, seed
        self.prompt_text, self.index, self.media = prompt_text, 0, media
        self.prompt_logprobs: list[TokenLogprob | None] | None = None if params.prompt_logprobs is None else []
        self.steps: list[LogitStep] = logit_steps(params, vocab, prompt)
        self.adapters: Adapters | None = None
        self.begun: Sequence[Chunk] = ()
        arrival = perf_counter()
        self.place = Place(arrival, None if params.timeout is None else arrival + params.timeout)
        self.chunks = ChunkQueue()
        self.output = Output(
            vocab,
            params,
            limit,
            constraint=constraint,
            shown=shown,
            chunks=self.chunks if stream else None,
            echo=self._echo(vocab) if params.echo else "",
        )
        self.progress = Progress()
        self.sampler: TokenSampler | None = None
        self.done = False
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.wake: threading.Event | None = None

    def _echo(self, vocab: Vocab) -> str:
        """What the text begins with before anything is generated."""
        if self.prompt_text is not None:
            return self.prompt_text
        return b"".join(map(vocab.piece, self.prompt.tolist())).decode("utf-8", "replace")

    def follow(self, first: Request, index: int) -> None:
        """Be number `index` of n completions of a prompt, which is computed for the first of them."""
        self.place.group, self.index, self.output.index = first, index, index
        self.prompt_logprobs = None  # the first has them

    def resume(self, chunks: Sequence[Chunk]) -> None:
        """Go on after these chunks, which an earlier stream of the same request gave before it broke off.

        Raises:
            InvalidRequest: they are not of this request.
        """
        if not chunks:
            return
        self.begun = chunks
        if (whole := chunks[-1].completion) is not None:
            self.completion, self.done = whole, True
            return
        self.progress.cached_tokens = len(self.prompt)  # at most
        reason = self.output.resume(chunks, draws=bool(self.steps))
        self.progress.begun = len(self.output.token_ids)
        if reason is not None:
            self.finish(reason)

    @property
    def streams(self) -> bool:
        """Whether chunks are made."""
        return self.output.streams

    @property
    def scoring(self) -> bool:
        """Whether log probabilities of its prompt are still to be read."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt)

    def tokens(self) -> Tokens:
        """Everything that must be in the KV cache before the next token: the prompt, and what was generated, less what
        was dropped."""
        generated, keep, dropped = self.output.token_ids, self.params.keep, self.progress.dropped
        if not generated:
            return self.prompt
        tokens = np.concatenate([self.prompt, np.array(generated, np.int32)])
        return np.concatenate([tokens[:keep], tokens[keep + dropped :]]) if dropped else tokens

    def finish(self, reason: FinishReason) -> None:
        """End with a result. Called again after it was broken off, it ends the same."""
        output, text = self.output, self.output.text
        n = len(output.token_ids)
        completion = Completion(
            text=text,
            token_ids=output.token_ids,
            finish_reason=reason,
            usage=Usage(len(self.prompt), self.progress.cached_tokens, n),
            timings=self.progress.timings(self.place.arrival, n),
            logprobs=output.logprobs,
            seed=None if self.params.greedy else self.seed,
            parsed=output.parsed(reason, text),
            stop_reason=output.stop_reason,
            prompt=self.prompt_text,
            prompt_token_ids=self.prompt.tolist(),
            prompt_logprobs=(self.place.group or self).prompt_logprobs,
            index=self.index,
        )
        output.finalize(completion)
        self.completion = completion
        self.done = True
        self.notify()

    def fail(self, error: BaseException) -> None:
        """End with an exception, unless it is over."""
        if not self.done:
            self.completion, self.error = None, error  # its end may have been broken off
            self.done = True
        self.notify()

    def notify(self) -> None:
        """Wake the thread that waits for this request, if any."""
        wake = self.wake
        if wake is not None:
            wake.set()

    def result(self) -> Completion:
        """The completion, or the exception that ended the request."""
        if self.error is not None:
            raise self.error
        assert self.completion is not None
        return self.completion
