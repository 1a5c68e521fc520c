"""From a conversation to a request, and from its tokens to an answer."""

from __future__ import annotations

import codecs
import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..core.model import Model
from ..engine.results import Chunk, Completion, Usage
from ..engine.text import TextStream
from ..errors import InvalidRequest
from ..params import flag
from ..sampling_params import SamplingParams
from . import plain_tools
from .choice import calls_grammar, chosen, shape_of
from .deltas import Delta, Parsed
from .functions import Tool, tool_schemas
from .messages import Message, normalize, require_text
from .parser import FORMATS, WHOLE, AnswerParser, detect_format, detect_reasoning, markers
from .prompts import PromptTokens, Tokens
from .results import ChatChoice, ChatChunk, ChatCompletion, ChatFinish, ChatMessage
from .template import ChatTemplate

ToolChoice = Literal["auto", "none", "required"] | str | Mapping[str, Any]

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "sep_token": "sep", "pad_token": "pad", "mask_token": "mask"}
_STRUCTURED = ("json_schema", "regex", "choices", "grammar", "lark")
_FINISH: dict[str, ChatFinish] = {"eog": "stop", "stop": "stop", "length": "length", "cancelled": "cancelled"}


class Chat:
    """How conversations are held with one model. Any thread may use it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._vocab = model.vocab
        self._tokens = PromptTokens(model.vocab)
        self._templates: dict[tuple[str, bool], ChatTemplate] = {}

    def template(self, source: str | None = None, *, tools: bool = False) -> ChatTemplate:
        """The model's template, or the one given as a Jinja text or a built-in name.

        Args:
            tools: take the model's own template for tools, where it has one.

        Raises:
            InvalidRequest: the model has none and none was given, or no built-in one has that name.
        """
        key = (source or "", tools)
        found = self._templates.get(key)
        if found is None:
            text = source or (self._model.chat_template("tool_use") if tools else None) or self._model.chat_template()
            if not text:
                raise InvalidRequest(
                    f"{self._model.path.name} has no chat template: give template=, a Jinja text or a name such as "
                    "'chatml' (llcuda_ffi.chat.builtin.TEMPLATES)"
                )
            vocab = self._vocab
            ids = {name: vocab.special(special) for name, special in _SPECIAL.items()}
            variables = {name: vocab.text(token) for name, token in ids.items() if token is not None}
            if len(self._templates) > 64:
                self._templates.clear()
            found = self._templates[key] = ChatTemplate(text, variables)
        return found

    def prepare(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        response_format: Mapping[str, Any] | None = None,
        template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        tool_format: str | None = None,
    ) -> ChatRequest:
        """A conversation ready to be generated; see Llama.chat for the arguments.

        Raises:
            InvalidRequest: a message, tool, template or setting is not acceptable.
        """
        flag("parallel_tool_calls", parallel_tool_calls)
        flag("continue_final_message", continue_final_message)
        if tool_format is not None and tool_format not in FORMATS:
            raise InvalidRequest(
                f"no tool format is called {tool_format!r:.60}: there are {', '.join(sorted(FORMATS))}"
            )
        params = _with_format(params, response_format)
        schemas = tool_schemas(tools) if tools else []
        mode, named = chosen(tool_choice, [s["function"]["name"] for s in schemas])
        if mode == "none":
            schemas = []
        jinja = self.template(template, tools=bool(schemas))
        chat = normalize(messages)
        require_text(chat)
        shown_tools: list[dict[str, Any]] | None = schemas or None
        format = tool_format or detect_format(jinja.source)
        if not jinja.takes_tools and (schemas or plain_tools.has_tools(chat)):
            chat, shown_tools, format = plain_tools.rewrite(chat, schemas), None, tool_format or "json"
        rendered = jinja.prompt(
            self._tokens.guard(chat),
            tools=shown_tools,
            documents=documents,
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
            **dict(chat_template_kwargs or {}),
        )
        text, tokens = self._tokens.tokens(rendered)
        reasoning = detect_reasoning(jinja.source)
        structured = any(getattr(params, name) is not None for name in _STRUCTURED)
        if mode == "required":
            if structured:
                raise InvalidRequest(
                    "tool_choice asks for a call and the structured output for something else: drop one"
                )
            format, shape = shape_of(format, jinja.source)
            params = dataclasses.replace(
                params, lark=self._calls(shape, schemas, named, parallel_tool_calls, text, reasoning)
            )
        elif not schemas and format not in WHOLE:
            format = "none"
        if structured:
            reasoning = None
            format = format if format == "harmony" else "none"
        return ChatRequest(self, text, tokens, params, format, schemas, reasoning)

    def _calls(
        self,
        shape: str,
        schemas: Sequence[Mapping[str, Any]],
        named: str | None,
        parallel: bool,
        prompt: str,
        reasoning: tuple[str, str] | None,
    ) -> str:
        tools = [s for s in schemas if named is None or s["function"]["name"] == named]
        opened = reasoning is not None and prompt.rstrip().endswith(reasoning[0])
        return calls_grammar(
            shape,
            tools,
            self._lark,
            parallel=parallel and named is None,
            reasoning_end=reasoning[1] if opened and reasoning is not None else None,
        )

    def _lark(self, text: str) -> str:
        """A text in Lark, its control tokens by their ids."""
        parts = self._tokens.split(text)
        return " ".join(f"<[{p}]>" if isinstance(p, int) else json.dumps(p, ensure_ascii=False) for p in parts)

    def shown(self, format: str, reasoning: tuple[str, str] | None) -> frozenset[int]:
        """The control tokens whose text the parser needs."""
        vocab = self._vocab
        found = set()
        for marker in markers(format, reasoning):
            ids = vocab.tokenize(marker, add_special=False, parse_special=True)
            if len(ids) == 1 and vocab.is_control(int(ids[0])):
                found.add(int(ids[0]))
        return frozenset(found)


def _with_format(params: SamplingParams, response_format: Mapping[str, Any] | None) -> SamplingParams:
    """OpenAI's response_format as json_schema."""
    if response_format is None:
        return params
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return params
    if kind == "json_object":
        return dataclasses.replace(params, json_schema={"type": "object"})
    if kind == "json_schema":
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else response_format.get("schema")
        if schema is not None:
            return dataclasses.replace(params, json_schema=schema)
    raise InvalidRequest(
        "response_format must be {'type': 'text' | 'json_object'} or {'type': 'json_schema', 'json_schema': "
        f"{{'schema': …}}}}, not {response_format!r:.100}"
    )


class ChatRequest:
    """A prepared conversation.

    Attributes:
        text: the rendered prompt.
        tokens: its token ids.
        params: what is generated with.
        format, reasoning: how the answer is taken apart.
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
    ) -> None:
        self._chat, self.text, self.tokens, self.params = chat, text, tokens, params
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
            text = TextStream(self.params.stop)
            for token in done.token_ids:
                if text.push(self.piece(token)):
                    break
            choices.append(self.choice(i, done, self.parser().parse(text.text)))
            self._remember(done)
        return self.completion(completions, choices)

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
        value = None if parsed.tool_calls else done.parsed
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
        self._text = TextStream(request.params.stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: dict[int, str] = {}

    def feed(self, chunk: Chunk) -> list[ChatChunk]:
        """What one of the engine's chunks brings; the last has the completion."""
        text, request = self._text, self._request
        for token in chunk.token_ids:
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
