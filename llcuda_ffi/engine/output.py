"""What a request has written: tokens, text, log probabilities and the state of its constraint, which move together.

Chunks, chat deltas and HTTP events are views of it: a chunk is what came between two places of the same output.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections import deque
from collections.abc import Sequence, Set

from ..core.vocab import Vocab
from ..errors import InvalidRequest
from ..sampling_params import SamplingParams
from .results import Chunk, Completion, FinishReason, TokenLogprob
from .sampling.constraint import Constraint
from .text import TextStream


class ChunkQueue:
    """Chunks on their way from the thread that steps to the reader of a stream."""

    __slots__ = ("_chars", "_over", "_queue", "_tokens")

    def __init__(self) -> None:
        self._queue: deque[tuple[int, int, Chunk]] = deque()
        self._tokens = self._chars = 0  # given to the reader
        self._over = False

    def put(self, tokens: int, chars: int, chunk: Chunk) -> None:
        """Add the chunk that follows after so many tokens and characters."""
        self._queue.append((tokens, chars, chunk))

    @property
    def given(self) -> tuple[int, int]:
        """How many tokens and characters the reader has."""
        return self._tokens, self._chars

    def begin(self, tokens: int, chars: int) -> None:
        """The reader has so many already."""
        self._tokens, self._chars = tokens, chars

    def __bool__(self) -> bool:
        return bool(self._queue)

    def pop(self) -> Chunk | None:
        """The next chunk, None where there is none yet."""
        while self._queue and not self._over:
            tokens, chars, chunk = self._queue.popleft()
            again = self._tokens - tokens
            if again or chars < self._chars:  # a step that was broken off had sent a part of it before
                chunk.text, chunk.token_ids = chunk.text[self._chars - chars :], chunk.token_ids[again:]
                chunk.logprobs = None if chunk.logprobs is None else chunk.logprobs[again:]
            self._tokens += len(chunk.token_ids)
            self._chars += len(chunk.text)
            self._over = chunk.completion is not None
            if chunk.token_ids or self._over:
                return chunk
        return None


class Output:
    """What one request has written.

    `token_ids` is the truth: a token counts from the moment it stands there. `rewind` makes the rest agree with it.

    Attributes:
        token_ids: every token so far.
        logprobs: an entry for each, None where nobody asked.
        forced: how many of the tokens that `resume` was given were not drawn: a constraint left no choice.
        constraint: what the tokens must follow, None where nothing.
        streams: whether chunks are made.
        stop_reason: the stop string or token that ended it, None for other ends.
        index: which of n completions of a prompt it is.
    """

    __slots__ = (
        "_chars", "_chunks", "_echo", "_ends", "_limit", "_params", "_sent", "_shown", "_stop_tokens", "_text",
        "_vocab", "constraint", "forced", "index", "logprobs", "stop_reason", "streams", "token_ids",
    )  # fmt: skip

    def __init__(
        self,
        vocab: Vocab,
        params: SamplingParams,
        limit: int,
        *,
        constraint: Constraint | None = None,
        shown: Set[int] = frozenset(),
        chunks: ChunkQueue | None = None,
        echo: str = "",
    ) -> None:
        """
        Args:
            limit: most tokens.
            shown: control tokens that are written into the text; the others write nothing.
            chunks: where a stream's chunks go.
            echo: what the text begins with.
        """
        self._vocab, self._params, self._limit, self._shown, self._chunks = vocab, params, limit, shown, chunks
        self._echo = echo
        self.streams = chunks is not None
        self._ends = not params.ignore_eos  # with the model's own end token
        self._stop_tokens = frozenset(params.stop_token_ids)
        self.index = 0
        self.stop_reason: str | int | None = None
        self._sent = self._chars = 0  # tokens and characters in chunks
        self.forced = 0
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.constraint = constraint
        # without a stream or stop strings nobody needs the text before the end
        self._text = self._new_text() if chunks is not None or params.stop else None

    def _new_text(self) -> TextStream:
        params = self._params
        return TextStream(
            params.stop or (),
            include=params.include_stop_str_in_output,
            at_least=params.min_tokens,
            before=self._echo,
        )

    def accept(self, token: int, logprob: TokenLogprob | None) -> FinishReason | None:
        """Take the next token. Returns why the output ends with it, None where it goes on.

        Raises:
            InvalidRequest: the constraint does not take the token.
        """
        if self.constraint is not None:
            self.constraint.accept(token)
        if logprob is not None:
            assert self.logprobs is not None
            self.logprobs.append(logprob)
        token_ids = self.token_ids
        token_ids.append(token)
        return self._read(token, len(token_ids))

    def _read(self, token: int, n: int) -> FinishReason | None:
        """Read the token that is number `n`, counted from 1."""
        if self._ends and self._vocab.is_eog(token):
            return "eog"
        text, ends = self._text, token in self._stop_tokens and n >= self._params.min_tokens
        if text is not None and (not ends or self._params.include_stop_str_in_output):
            text.push(self._vocab.piece(token, special=token in self._shown))
            if text.stop is not None and not ends:
                self.stop_reason = text.stop
                return "stop"
        if ends:
            self.stop_reason = token
            return "stop"
        return "length" if n >= self._limit else None

    def rewind(self) -> FinishReason | None:
        """Make text, log probabilities and constraint agree with `token_ids`, after a step that was broken off.

        Returns:
            why the output has ended already, None where it goes on.
        """
        if self.logprobs is not None:
            del self.logprobs[len(self.token_ids) :]
        if self.constraint is not None:
            self.constraint.restart(self.token_ids)
        reason = None
        if self._text is not None:
            self._text = self._new_text()
        for i, token in enumerate(self.token_ids, 1):
            reason = self._read(token, i)
            if i == self._sent and self._text is not None:
                self._chars = len(self._text.take())
        return reason

    def resume(self, chunks: Sequence[Chunk], *, draws: bool) -> FinishReason | None:
        """Be as after these chunks of a stream that broke off; the next chunk follows them.

        Args:
            draws: every token was drawn, also one that a constraint left no choice for.

        Returns:
            why the output has ended with them, None where it goes on.

        Raises:
            InvalidRequest: they are not of a stream of this request.
        """
        tokens = self._vocab.ids([token for chunk in chunks for token in chunk.token_ids]).tolist()
        if self.logprobs is not None:
            self.logprobs += [entry for chunk in chunks for entry in chunk.logprobs or ()]
        if self.constraint is not None and not draws:
            self.forced = _count_forced(self.constraint, tokens, self._vocab)
        self.token_ids += tokens
        self._sent = len(tokens)
        reason = self.rewind()
        text = "".join(chunk.text for chunk in chunks)
        shown = "" if self._text is None else self._text.text[: self._chars]
        if text != shown or (self.logprobs is not None and len(self.logprobs) != len(tokens)):
            raise InvalidRequest("these chunks are not the beginning of a stream of this prompt with these settings")
        if self._chunks is not None:
            self._chunks.begin(self._sent, self._chars)
        return reason

    def release(self) -> bool:
        """Send what can be shown to the reader of the stream, if there is one; returns whether there was anything."""
        if self._text is None or not (text := self._text.take()):
            return False
        self._send(Chunk(text, self.token_ids[self._sent :], None, None, None, self.index))
        return True

    def _send(self, chunk: Chunk) -> None:
        start, end, chars = self._sent, self._sent + len(chunk.token_ids), self._chars
        if self.logprobs is not None:
            chunk.logprobs = self.logprobs[start:end]
        if self._chunks is not None:
            self._chunks.put(start, chars, chunk)
        self._sent, self._chars = end, chars + len(chunk.text)

    def finalize(self, completion: Completion) -> None:
        """Send the last chunk of a stream."""
        if self._chunks is not None and self._text is not None:
            text, tokens = self._text.take(final=True), self.token_ids[self._sent :]
            self._send(Chunk(text, tokens, None, completion.finish_reason, completion, self.index))

    @property
    def text(self) -> str:
        """The text so far, up to a stop string; of an unfinished character at its end nothing is shown."""
        if self._text is not None:
            return self._text.text
        ids, shown, piece = self.token_ids, self._shown, self._vocab.piece
        if ids and self._hidden(ids[-1]):
            ids = ids[:-1]
        return self._echo + utf_8_decode(b"".join([piece(t, special=t in shown) for t in ids]), "replace", False)[0]

    def _hidden(self, token: int) -> bool:
        """Whether the token, the last one, is an end and no text."""
        if token in self._stop_tokens:
            return not self._params.include_stop_str_in_output
        return self._ends and self._vocab.is_eog(token)

    def parsed(self, reason: FinishReason, text: str) -> object:
        """The value of a structured output, None where it was cut: by a stop string, a limit, or its caller."""
        constraint = self.constraint
        return constraint.result(text[len(self._echo) :]) if constraint is not None and self.complete(reason) else None

    def complete(self, reason: FinishReason) -> bool:
        """Whether a structured output was not cut: what max_tokens ended is complete where nothing may follow."""
        constraint = self.constraint
        return constraint is not None and (reason == "eog" or (reason == "length" and constraint.finished()))


def _count_forced(constraint: Constraint, tokens: Sequence[int], vocab: Vocab) -> int:
    """How many of an output's first tokens its constraint left no choice for."""
    constraint.restart(())
    count = at = 0
    while at < len(tokens):
        run = constraint.forced()
        n = 0
        while at < len(tokens) and n < len(run) and tokens[at] == run[n] and not vocab.is_eog(tokens[at]):
            constraint.accept(tokens[at])
            at, n = at + 1, n + 1
        count += n
        if not n:
            constraint.accept(tokens[at])
            at += 1
    return count
