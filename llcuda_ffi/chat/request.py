"""A prepared conversation, and its answer from what the engine wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.media import MediaPrompt
from ..engine.results import Chunk, Completion, TokenLogprob, Usage
from ..sampling_params import SamplingParams
from .identity import created_now, new_id
from .parsing.deltas import Delta, Parsed
from .parsing.parser import AnswerParser
from .prompts import PromptTokens, Tokens
from .results import ChatChoice, ChatChunk, ChatCompletion, ChatFinish, ChatMessage

_FINISH: dict[str, ChatFinish] = {"eog": "stop", "stop": "stop", "length": "length", "cancelled": "cancelled"}


@dataclass(frozen=True)
class AnswerFormat:
    """How an answer is taken apart.

    Attributes:
        name: of the format, in parsing.parser.FORMATS.
        tools: the tools' schemas.
        reasoning: what opens and closes reasoning.
        prompt: the text that the answer continues.
        calls_only: the answer follows a grammar of calls.
    """

    name: str
    tools: Sequence[Mapping[str, Any]]
    reasoning: tuple[str, str] | None
    prompt: str
    calls_only: bool = False

    def parser(self) -> AnswerParser:
        """A parser for one answer."""
        return AnswerParser(
            self.name, tools=self.tools, reasoning=self.reasoning, prompt=self.prompt, calls_only=self.calls_only
        )

    def content(self, answer: str) -> str | None:
        """The content of a whole answer, None where there is none."""
        return self.parser().parse(answer).content or None


@dataclass(eq=False)
class ChatRequest:
    """A prepared conversation.

    Attributes:
        text: the rendered prompt.
        tokens: its token ids.
        params: what is generated with.
        format: how the answer is taken apart.
        model: the model's name.
        turns: remembers the answer's tokens for the next turn.
        media: the prompt with its images and sounds, None where it has none.
        tail: the text after the last of them, named by what stands before it, and its token ids.
    """

    text: str
    tokens: Tokens
    params: SamplingParams
    format: AnswerFormat
    model: str
    turns: PromptTokens
    media: MediaPrompt | None = None
    tail: tuple[str, Tokens] | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{new_id(12)}")
    created: int = field(default_factory=created_now)

    @property
    def prompt(self) -> Tokens | MediaPrompt:
        """What is generated from."""
        return self.tokens if self.media is None else self.media

    def leave_reasoning(self) -> None:
        """Leave reasoning in the content, with its marks."""
        self.format = replace(self.format, reasoning=None)

    def stream(self) -> ChatStreams:
        """Takes the engine's chunks apart."""
        return ChatStreams(self)

    def answer(self, completions: Sequence[Completion]) -> ChatCompletion:
        """The answer, from the completions of the prompt."""
        choices = []
        for i, done in enumerate(completions):
            parsed = self.format.parser().parse(done.text, cut=_cut(done))
            for call in parsed.tool_calls:
                call.id = call.id or self.call_id()
            choices.append(self.choice(i, done, parsed))
        return self.completion(completions, choices)

    def choice(self, index: int, done: Completion, parsed: Parsed) -> ChatChoice:
        """One answer of n."""
        message = ChatMessage(
            content=parsed.content or (None if parsed.tool_calls else ""),
            reasoning_content=parsed.reasoning or None,
            tool_calls=parsed.tool_calls,
        )
        finish = _FINISH[done.finish_reason]
        # a stop string may have cut the last call
        if parsed.tool_calls and finish == "stop" and (not _cut(done) or parsed.tool_calls[-1].complete):
            finish = "tool_calls"
        if done.finish_reason in ("eog", "length"):
            answer = done.token_ids if _cut(done) else done.token_ids[:-1]
            self.turns.remember_answer(*(self.tail or (self.text, self.tokens)), answer)
        return ChatChoice(index, message, finish, done.logprobs, done.parsed)

    def call_id(self) -> str:
        """An id for a call; Mistral's templates take nine letters and digits only."""
        return new_id(5)[:9] if self.format.name == "mistral" else f"call_{new_id(12)}"

    def completion(self, completions: Sequence[Completion], choices: list[ChatChoice]) -> ChatCompletion:
        """The whole result."""
        first = completions[0]
        usage = Usage(
            first.usage.prompt_tokens,
            first.usage.cached_tokens,
            sum(done.usage.completion_tokens for done in completions),
        )
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage,
            timings=first.timings,
            prompt=self.text,
            prompt_tokens=self.tokens.tolist(),
        )


def _cut(done: Completion) -> bool:
    """Whether something else than the model ended it."""
    return done.finish_reason != "eog"


class ChatStreams:
    """Takes n answers apart while they stream together."""

    def __init__(self, request: ChatRequest) -> None:
        self._streams = [ChatStream(request, i) for i in range(request.params.n)]

    def feed(self, chunk: Chunk) -> list[ChatChunk]:
        """What one of the engine's chunks brings to the answer it belongs to."""
        return self._streams[chunk.index].feed(chunk)


class ChatStream:
    """Takes one answer apart while it streams."""

    def __init__(self, request: ChatRequest, index: int = 0) -> None:
        self._request, self._index = request, index
        self._parser = request.format.parser()
        self._call_ids: dict[int, str] = {}
        self._token_ids: list[int] = []  # not yet in a chunk
        self._logprobs: list[TokenLogprob] = []

    def feed(self, chunk: Chunk) -> list[ChatChunk]:
        """What one of the engine's chunks brings; the last has the completion."""
        request, done = self._request, chunk.completion
        deltas = self._parser.feed(chunk.text)
        if done is not None:
            deltas += self._parser.close(cut=_cut(done))
        out = [self._chunk(delta) for delta in deltas]
        if done is not None:
            last = self._chunk(Delta())
            parsed = self._parser.parsed
            for i, call in enumerate(parsed.tool_calls):
                call.id = self._call_ids[i]
            choice = request.choice(self._index, done, parsed)
            last.finish_reason = choice.finish_reason
            last.completion = request.completion([done], [choice])
            out.append(last)
        self._token_ids += chunk.token_ids
        self._logprobs += chunk.logprobs or ()
        if out:
            out[0].token_ids, self._token_ids = self._token_ids, []
            if chunk.logprobs is not None:
                out[0].logprobs, self._logprobs = self._logprobs, []
        return out

    def _chunk(self, delta: Delta) -> ChatChunk:
        request = self._request
        chunk = ChatChunk(request.id, request.created, request.model, delta.content, delta.reasoning)
        chunk.index = self._index
        call = delta.call
        if call is not None:
            if call.name is not None:
                call.id = self._call_ids[call.index] = call.id or request.call_id()
            chunk.tool_calls.append(call)
        return chunk
