"""Output: tokens, constraint, text and log probabilities of a request move together, and go back together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llcuda_ffi.engine.output import ChunkQueue, Output
from llcuda_ffi.engine.results import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from llcuda_ffi.sampling_params import SamplingParams

PIECES = [b"a", b"b", b" the", "é".encode()[:1], "é".encode()[1:], "🙂".encode()[:3], "🙂".encode()[3:], b"<mark>", b""]
EOG = len(PIECES) - 1
MARK = EOG - 1  # a control token


class FakeVocab:
    """As much of a Vocab as an output asks for."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return b"" if token == MARK and not special else PIECES[token]

    def is_eog(self, token: int) -> bool:
        return token == EOG


class FakeConstraint:
    """Remembers what it accepted; breaks off where it is told to."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.breaks = -1

    def accept(self, token: int) -> None:
        self.accepted.append(token)
        if len(self.accepted) == self.breaks:
            self.breaks = -1
            raise KeyboardInterrupt

    def restart(self, tokens: Sequence[int]) -> None:
        self.accepted = list(tokens)

    def finished(self) -> bool:
        return self.accepted[-2:] == [0, 1]

    def result(self, text: str) -> Any:
        return ("parsed", text)


def make(
    chunks: ChunkQueue | None = None, limit: int = 100, shown: frozenset[int] = frozenset(), **more: Any
) -> Output:
    constraint: Any = FakeConstraint()
    vocab: Any = FakeVocab()
    params = SamplingParams(logprobs=0, **more)
    return Output(vocab, params, limit, constraint=constraint, shown=shown, chunks=chunks)


def finish(output: Output, reason: FinishReason) -> Completion:
    """As a request finishes."""
    text = output.text
    completion = Completion(
        text=text,
        token_ids=output.token_ids,
        finish_reason=reason,
        usage=Usage(1, 0, len(output.token_ids)),
        timings=Timings(0, 0, 0, 0, 0),
        logprobs=output.logprobs,
        parsed=output.parsed(reason, text),
    )
    output.finalize(completion)
    return completion


def drain(queue: ChunkQueue) -> list[Chunk]:
    """Every chunk that is there."""
    found = []
    while (chunk := queue.pop()) is not None:
        found.append(chunk)
    return found


PLACES = ["constraint", "logprob", "text", "put", "sent"]


@example([EOG], [], 0, "text")
@given(
    st.lists(st.integers(0, EOG), min_size=1, max_size=14),
    st.lists(st.sampled_from(["ab", "é", "🙂a", " t", "b the"]), max_size=2, unique=True),
    st.integers(0, 13),
    st.sampled_from(PLACES),
)
def test_a_step_that_breaks_off_leaves_no_trace(tokens: list[int], stops: list[str], at: int, place: str) -> None:
    """Wherever a step is interrupted, what follows after `rewind` is what it would have been: text, tokens, log
    probabilities, constraint, chunks; nothing is sent twice, nothing is lost."""
    want, reason = _play(tokens, stops, None, place)
    got, again = _play(tokens, stops, at, place)
    assert (got.text, got.token_ids, got.parsed, reason) == (want.text, want.token_ids, want.parsed, again)
    assert [entry.token for entry in got.logprobs or ()] == got.token_ids


def _play(tokens: list[int], stops: list[str], at: int | None, place: str) -> tuple[Completion, FinishReason]:
    queue = ChunkQueue()
    output = make(queue, limit=len(tokens), stop=stops)
    reason: FinishReason | None = None
    seen: list[Chunk] = []
    broken = False
    while reason is None:
        n = len(output.token_ids)
        token = tokens[n]
        logprob = TokenLogprob(token, b"", -1.0)
        with pytest.MonkeyPatch.context() as patch:
            if n == at and not broken:
                broken = True
                _break(patch, output, place)
            try:
                reason = output.accept(token, logprob)
                if reason is None:
                    output.release()
                else:
                    finish(output, reason)
            except KeyboardInterrupt:
                patch.undo()
                reason = output.rewind()
                if reason is not None:
                    finish(output, reason)
        assert output.constraint is not None
        assert output.constraint.accepted == output.token_ids  # type: ignore[attr-defined]
        seen += drain(queue)
    assert "".join(chunk.text for chunk in seen) == output.text
    assert [i for chunk in seen for i in chunk.token_ids] == output.token_ids
    for chunk in seen:
        assert [entry.token for entry in chunk.logprobs or ()] == chunk.token_ids
    assert [chunk.completion is not None for chunk in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].completion is not None
    return seen[-1].completion, reason


def _break(patch: pytest.MonkeyPatch, output: Output, place: str) -> None:
    """Have the next step raise at a place."""
    constraint: Any = output.constraint
    if place == "constraint":
        constraint.breaks = len(constraint.accepted) + 1
    elif place == "logprob":
        patch.setattr(output, "token_ids", _Raising(output.token_ids))
    elif place == "text":
        patch.setattr(output, "_text", _Raising([]))
    elif place in ("put", "sent"):
        patch.setattr(output, "_chunks", _Queue(output._chunks, place == "sent"))


class _Raising(list[int]):
    """Raises where something is added, and where the text is read."""

    def append(self, item: int) -> None:
        raise KeyboardInterrupt

    def push(self, piece: bytes) -> bool:
        raise KeyboardInterrupt

    @property
    def text(self) -> str:
        raise KeyboardInterrupt


class _Queue:
    """Raises before or after a chunk is put."""

    def __init__(self, queue: ChunkQueue | None, after: bool) -> None:
        self._queue, self._after = queue, after

    def put(self, tokens: int, chars: int, chunk: Chunk) -> None:
        if self._after and self._queue is not None:
            self._queue.put(tokens, chars, chunk)
        raise KeyboardInterrupt


def test_control_tokens_that_are_shown() -> None:
    """A control token writes nothing, unless it marks parts of an answer; stop strings are found in it then."""
    plain, marked, stopped = make(), make(shown=frozenset((MARK,))), make(shown=frozenset((MARK,)), stop="<m")
    assert [output.accept(t, None) for output in (plain, marked) for t in (0, MARK, 1)] == [None] * 6
    assert (plain.text, marked.text) == ("ab", "a<mark>b")
    assert [stopped.accept(t, None) for t in (0, MARK)] == [None, "stop"]
    assert stopped.text == "a"


@pytest.mark.parametrize(
    ("tokens", "limit", "stop", "parsed"),
    [
        ([0, 1, EOG], 9, (), ("parsed", "ab")),  # the model ended it
        ([0, 1], 2, (), ("parsed", "ab")),  # nothing may follow
        ([1, 0], 2, (), None),  # something could follow
        ([0, 1], 9, "b", None),  # a stop string took a part away
    ],
)
def test_only_what_is_whole_has_a_value(tokens: list[int], limit: int, stop: Any, parsed: Any) -> None:
    """A structured output that was cut has no value."""
    output = make(limit=limit, stop=stop)
    reasons = [output.accept(token, None) for token in tokens]
    assert reasons[-1] is not None
    assert output.parsed(reasons[-1], output.text) == parsed
