"""A request on its way through the scheduler."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.adapter import LoraAdapter
from ..core.sampler import SamplerChain
from ..core.vocab import Vocab
from ..sampling_params import SamplingParams
from .results import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from .sampling.chain import RowSampler
from .sampling.constraint import Constraint
from .sampling.logit_steps import LogitStep, logit_steps
from .text import TextStream

Tokens = npt.NDArray[np.int32]

_numbers = itertools.count()

# adapters with their scales; empty: those that the context has for all requests
Adapters = tuple[tuple[LoraAdapter, float], ...]


class Request:
    """One prompt and what has been generated for it.

    Attributes:
        prompt: int32 token ids.
        params: its settings.
        limit: most tokens to generate, max_tokens and the context considered.
        generated: token ids so far.
        completion: the result, once `done`.
        error: the exception that ended it, once `done`.
        done: whether it is over; then exactly one of completion and error is set.
    """

    __slots__ = (
        "adapters", "alone", "argmax", "arrival", "cached", "cancelled", "chain", "completion", "constraint",
        "deadline", "done", "drafted", "drafts_kept", "error", "generated", "group", "index", "limit",
        "logprobs", "number", "on_chunk", "params", "pending", "prompt", "prompt_logprobs", "prompt_text", "reach",
        "replica", "row_sampler", "seed", "steps", "stop_reason", "stream", "t_first", "t_last", "t_slot",
        "text", "vocab", "wake",
    )  # fmt: skip

    def __init__(
        self,
        prompt: Tokens,
        params: SamplingParams,
        vocab: Vocab,
        limit: int,
        seed: int,
        *,
        constraint: Constraint | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
        prompt_text: str | None = None,
    ) -> None:
        """
        Args:
            prompt_text: the prompt as it was given, where that was a text.

        Raises:
            InvalidRequest: a token or word of the settings is not of the vocabulary.
        """
        self.prompt, self.params, self.vocab, self.limit, self.seed = prompt, params, vocab, limit, seed
        self.constraint, self.on_chunk = constraint, on_chunk
        self.number = next(_numbers)
        self.arrival = perf_counter()
        self.deadline = None if params.timeout is None else self.arrival + params.timeout
        self.generated: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.prompt_text = prompt_text
        self.prompt_logprobs: list[TokenLogprob | None] | None = None if params.prompt_logprobs is None else []
        self.steps: list[LogitStep] = logit_steps(params, vocab, prompt)
        self.stop_reason: str | int | None = None
        self.index = 0  # which of n
        # without a stream or stops nobody needs the text before the end
        self.text = TextStream.of(params, self._echo()) if on_chunk or params.stop or params.stop_token_ids else None
        self.pending: list[int] = []  # tokens not yet sent in a chunk
        self.chain: SamplerChain | None = None
        self.row_sampler: RowSampler | None = None
        self.adapters: Adapters = ()  # of this request alone
        self.group: Request | None = None  # the first of n completions of one prompt
        self.replica = 0  # which scheduler has it, of several
        self.t_slot = self.t_first = self.t_last = 0.0
        self.cached = self.drafted = self.drafts_kept = self.reach = 0
        self.cancelled = self.done = False
        self.alone = False  # its logits were not numbers: who caused that shows without company
        self.argmax: frozenset[int] | None = None  # greedy: the highest logit is the token, unless it is one of these
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.wake: threading.Event | None = None  # set when something happened, for a thread that waits

    def _echo(self) -> bytes:
        """What the text begins with before anything is generated."""
        if not self.params.echo:
            return b""
        if self.prompt_text is not None:
            return self.prompt_text.encode("utf-8", "surrogatepass")
        return b"".join(map(self.vocab.piece, self.prompt.tolist()))

    def follow(self, first: Request, index: int) -> None:
        """Be number `index` of n completions of a prompt, which is computed for the first of them."""
        self.group, self.index = first, index
        self.prompt_logprobs = None  # the first has them

    def push(self, token: int, piece: bytes) -> bool:
        """Add a token of `generated` to the text; returns whether a stop string or token ends it."""
        params, text = self.params, self.text
        assert text is not None
        if token in params.stop_token_ids and len(self.generated) >= params.min_tokens:
            self.stop_reason = token
            if params.include_stop_str_in_output:
                text.data += piece
            return True
        if text.push(piece):
            self.stop_reason = text.stop
            return True
        return False

    @property
    def scoring(self) -> bool:
        """Whether log probabilities of its prompt are still to be read."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt)

    def tokens(self) -> Tokens:
        """Everything that must be in the KV cache before the next token: the prompt, and what was generated."""
        if not self.generated:
            return self.prompt
        return np.concatenate([self.prompt, np.array(self.generated, np.int32)])

    def over(self, now: float) -> bool:
        """Whether it was cancelled or is too late."""
        return self.cancelled or (self.deadline is not None and now >= self.deadline)

    def rewind(self) -> None:
        """Make the text agree with `generated` again, after a step that was interrupted."""
        del self.pending[:]
        if self.logprobs is not None:
            del self.logprobs[len(self.generated) :]
        if self.text is not None:
            self.text.data[:] = self._echo() + b"".join(map(self.vocab.piece, self.generated))
            self.text.stopped = False

    def emit(self, token: int) -> None:
        """Send what can be shown."""
        assert self.text is not None
        assert self.on_chunk is not None
        self.pending.append(token)
        text = self.text.take()
        if text:
            tokens, self.pending = self.pending, []
            logprobs = None if self.logprobs is None else self.logprobs[len(self.generated) - len(tokens) :]
            self.on_chunk(Chunk(text, tokens, logprobs, index=self.index))

    def finish(self, reason: FinishReason) -> None:
        """End with a result."""
        generated = self.generated
        if self.text is not None:
            text = self.text.text
        else:
            piece = self.vocab.piece
            # an end token that is a control token writes nothing
            text = (self._echo() + b"".join([piece(t) for t in generated])).decode("utf-8", "replace")
        decode_s = max(0.0, self.t_last - self.t_first)
        n = len(generated)
        completion = Completion(
            text=text,
            token_ids=generated,
            finish_reason=reason,
            usage=Usage(len(self.prompt), self.cached, n),
            timings=Timings(
                queue_s=(self.t_slot or perf_counter()) - self.arrival,
                prompt_s=max(0.0, self.t_first - self.t_slot),
                ttft_s=max(0.0, self.t_first - self.arrival),
                decode_s=decode_s,
                tokens_per_s=(n - 1) / decode_s if n > 1 and decode_s > 0 else 0.0,
                drafted=self.drafted,
                accepted=self.drafts_kept,
            ),
            logprobs=self.logprobs,
            seed=None if self.params.greedy else self.seed,
            parsed=self._parsed(text) if reason != "cancelled" else None,
            stop_reason=self.stop_reason,
            prompt=self.prompt_text,
            prompt_token_ids=self.prompt.tolist(),
            prompt_logprobs=(self.group or self).prompt_logprobs,
            index=self.index,
        )
        self.completion = completion
        self.done = True
        if self.on_chunk is not None and self.text is not None:
            tokens, self.pending = self.pending, []
            logprobs = None if self.logprobs is None else self.logprobs[n - len(tokens) :] if tokens else []
            self.on_chunk(Chunk(self.text.take(final=True), tokens, logprobs, reason, completion, self.index))
        self.notify()

    def _parsed(self, text: str) -> Any:
        """The value of a structured output."""
        if self.constraint is None:
            return None
        return self.constraint.result(text.removeprefix(self._echo().decode("utf-8", "replace")))

    def fail(self, error: BaseException) -> None:
        """End with an exception, unless it is over."""
        if not self.done:
            self.error = error
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
