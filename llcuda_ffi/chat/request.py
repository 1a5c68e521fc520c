"""A prepared conversation, and its answer from the engine's tokens."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..engine.results import Chunk, Completion, Usage
from ..engine.text import TextStream
from ..sampling_params import SamplingParams
from ..structured.grammars import Read
from .parsing.deltas import Delta, Parsed
from .parsing.parser import AnswerParser
from .prompts import Tokens
from .results import ChatChoice, ChatChunk, ChatCompletion, ChatFinish, ChatMessage

if TYPE_CHECKING:
    from .conversation import Chat

_FINISH: dict[str, ChatFinish] = {"eog": "stop", "stop": "stop", "length": "length", "cancelled": "cancelled"}


class ChatRequest:
    """A prepared conversation.

    Attributes:
        text: the rendered prompt.
        tokens: its token ids.
        params: what is generated with.
        format, reasoning: how the answer is taken apart.
        read: the value of a structured output, where it is of the content alone.
    """

    def __init__(
        self,
        chat: Chat,
        text: str,
        tokens: Tokens,
        params: SamplingParams,
        format: str,
        tools: Sequence[Mapping[str, Any]],
        reasoning: tuple[str, str] | None,
        read: Read | None,
    ) -> None:
        self._chat, self._read, self.text, self.tokens, self.params = chat, read, text, tokens, params
        self.format, self.tools, self.reasoning = format, tools, reasoning
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = chat._model.path.stem
        self._shown = chat.shown(format, reasoning)

    def parser(self) -> AnswerParser:
        """A parser for the answer."""
        return AnswerParser(self.format, tools=self.tools, reasoning=self.reasoning, prompt=self.text)

    def stream(self) -> ChatStream:
        """Takes the engine's chunks apart."""
        return ChatStream(self)

    def piece(self, token: int) -> bytes:
        """What a token writes, for the parser."""
        vocab = self._chat._vocab
        return vocab.piece(token, special=token in self._shown)

    def answer(self, completions: Sequence[Completion]) -> ChatCompletion:
        """The answer, from the completions of the prompt."""
        choices = []
        for i, done in enumerate(completions):
            text = TextStream.of(self.params)
            for token in done.token_ids[:-1] if self._hidden(done) else done.token_ids:
                if text.push(self.piece(token)):
                    break
            choices.append(self.choice(i, done, self.parser().parse(text.text)))
            self._remember(done)
        return self.completion(completions, choices)

    def _hidden(self, done: Completion) -> bool:
        """Whether the last token is a stop that is not part of the text."""
        return isinstance(done.stop_reason, int) and not self.params.include_stop_str_in_output

    def choice(self, index: int, done: Completion, parsed: Parsed) -> ChatChoice:
        """One answer of n."""
        for call in parsed.tool_calls:
            call.id = call.id or self.call_id()
            call.arguments = call.arguments or "{}"
        message = ChatMessage(
            content=parsed.content or (None if parsed.tool_calls else ""),
            reasoning_content=parsed.reasoning or None,
            tool_calls=parsed.tool_calls,
        )
        finish = _FINISH[done.finish_reason]
        if parsed.tool_calls and finish == "stop":
            finish = "tool_calls"
        value = None
        if self._read is None:
            value = None if parsed.tool_calls else done.parsed
        elif parsed.content and done.finish_reason != "cancelled":
            value = self._read(parsed.content)
        return ChatChoice(index, message, finish, done.logprobs, value)

    def call_id(self) -> str:
        """An id for a call; Mistral's templates take nine letters and digits only."""
        return secrets.token_hex(5)[:9] if self.format == "mistral" else f"call_{secrets.token_hex(12)}"

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

    def _remember(self, done: Completion) -> None:
        """Keep the answer's own tokens for the next turn of the conversation."""
        if done.finish_reason != "eog" or not done.token_ids:
            return
        vocab = self._chat._vocab
        ids = done.token_ids[:-1]
        try:
            text = b"".join(vocab.piece(t, special=True) for t in ids).decode()
        except UnicodeDecodeError:
            return
        self._chat._tokens.remember(self.text + text, [*self.tokens.tolist(), *ids])


class ChatStream:
    """Takes one answer apart while it streams."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._parser = request.parser()
        self._text = TextStream.of(request.params)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: dict[int, str] = {}

    def feed(self, chunk: Chunk) -> list[ChatChunk]:
        """What one of the engine's chunks brings; the last has the completion."""
        text, request = self._text, self._request
        hidden = chunk.completion is not None and request._hidden(chunk.completion)
        for token in chunk.token_ids[:-1] if hidden else chunk.token_ids:
            if not text.stopped:
                text.push(request.piece(token))
        over = chunk.completion is not None
        deltas = self._parser.feed(text.take(final=over))
        if over:
            deltas += self._parser.close()
        out = [self._chunk(delta) for delta in deltas]
        if chunk.logprobs:
            if not out:
                out.append(self._chunk(Delta()))
            out[0].logprobs = chunk.logprobs
        if chunk.completion is not None:
            last = self._chunk(Delta())
            parsed = self._parser.parsed
            for i, call in enumerate(parsed.tool_calls):
                call.id = self._ids[i]
            choice = request.choice(0, chunk.completion, parsed)
            request._remember(chunk.completion)
            last.finish_reason = choice.finish_reason
            last.completion = request.completion([chunk.completion], [choice])
            out.append(last)
        return out

    def _chunk(self, delta: Delta) -> ChatChunk:
        request = self._request
        chunk = ChatChunk(request.id, request.created, request.model, delta.content, delta.reasoning)
        call = delta.call
        if call is not None:
            if call.name is not None:
                call.id = self._ids[call.index] = call.id or request.call_id()
            chunk.tool_calls.append(call)
        return chunk
