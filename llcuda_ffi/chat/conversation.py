"""From a conversation to a request (request.py), ready to be generated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.model import Model
from ..engine.answer_params import AnswerParams
from ..engine.media import MediaPrompt
from ..engine.sampling.reasoning_budget import ReasoningBudget
from ..errors import InvalidRequest
from ..multimodal.encoder import MediaEncoder
from ..params import flag, shown
from ..sampling_params import SamplingParams
from ..structured.grammars import constrained
from .media import ChatMedia
from .messages import Message, check_known, normalize, openai_forms, plain, require_text
from .opening import Opening, check_gbnf, opening, reasoning_marks
from .options import ToolChoice
from .parsing.parser import FORMATS, WHOLE, detect_format, detect_reasoning, markers
from .prompts import PromptTokens, Tokens
from .request import AnswerFormat, ChatRequest
from .response_format import with_response_format
from .template.template import ChatTemplate
from .tools import plain as plain_tools
from .tools.choice import calls_grammar, check_tools, chosen, shape_of
from .tools.functions import Tool, tool_schemas

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "sep_token": "sep", "pad_token": "pad", "mask_token": "mask"}
_TAKEN = {"self", "messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}


class Chat:
    """How conversations are held with one model. Any thread may use it."""

    def __init__(self, model: Model, media: MediaEncoder | None = None) -> None:
        self._model, self._media = model, media
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
        if source is not None and not isinstance(source, str):
            raise InvalidRequest(f"template must be a Jinja text or a name, not {type(source).__name__}")
        key = (source or "", tools)
        found = self._templates.get(key)
        if found is None:
            text = source or (self._model.chat_template("tool_use") if tools else None) or self._model.chat_template()
            if not text:
                raise InvalidRequest(
                    f"{self._model.path.name} has no chat template: give template=, a Jinja text or a name such as "
                    "'chatml' (llcuda_ffi.chat.template.builtin.TEMPLATES)"
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
        continue_final_message: bool | None = None,
        add_generation_prompt: bool | None = None,
        tool_format: str | None = None,
    ) -> ChatRequest:
        """A conversation ready to be generated; see Llama.chat for the arguments.

        Raises:
            InvalidRequest: a message, tool, template or setting is not acceptable.
        """
        flag("parallel_tool_calls", parallel_tool_calls)
        _check_ends(continue_final_message, add_generation_prompt)
        if tool_format is not None and not (isinstance(tool_format, str) and tool_format in FORMATS):
            raise InvalidRequest(
                f"no tool format is called {shown(tool_format)}: there are {', '.join(sorted(FORMATS))}"
            )
        if isinstance(documents, (str, bytes)) or not isinstance(documents, (Sequence, type(None))):
            raise InvalidRequest(f"documents must be a list of mappings, not {type(documents).__name__}")
        if params.echo:
            raise InvalidRequest("echo is for generate(): a chat's prompt is ChatCompletion.prompt")
        params = with_response_format(params, response_format)
        schemas = tool_schemas(tools) if tools else []
        mode, named = chosen(tool_choice, [s["function"]["name"] for s in schemas])
        if mode == "none":
            schemas = []
        jinja = self.template(template, tools=bool(schemas))
        media = ChatMedia()
        chat = normalize(media.take(messages))
        if media and self._media is None:
            raise InvalidRequest(
                f"the conversation has images or sound, and {self._model.path.name} was loaded without a projector: "
                "Llama(model, mmproj=…)"
            )
        require_text(chat)
        check_known(chat, jinja.capabilities.mentions)
        chat = openai_forms(chat)
        if continue_final_message is None:
            continue_final_message = add_generation_prompt is None and _has_begun(chat[-1])
        opens = not continue_final_message and add_generation_prompt is not False
        shown_tools: list[dict[str, Any]] | None = schemas or None
        format = tool_format or detect_format(jinja.source)
        if not jinja.capabilities.tools and (schemas or plain_tools.has_tools(chat)):
            chat, shown_tools, format = plain_tools.rewrite(chat, schemas), None, tool_format or "json"
        rendered = jinja.prompt(
            self._tokens.guard(chat),
            tools=self._tokens.guard(shown_tools),
            documents=self._tokens.guard(None if documents is None else plain(list(documents), "documents")),
            add_generation_prompt=opens,
            continue_final_message=continue_final_message,
            **self._tokens.guard(_variables(chat_template_kwargs)),
        )
        seen: MediaPrompt | None = None
        tail: tuple[str, Tokens] | None = None
        if media and self._media is not None:
            seen, tail = media.prompt(rendered, self._tokens, self._media)
            text, tokens = seen.text, seen.tokens
        else:
            text, tokens = self._tokens.tokens(rendered)
        reasoning = detect_reasoning(jinja.source)
        first = Opening()
        output_of: Callable[[str], str | None] | None = None
        if mode == "required":
            if constrained(params):
                raise InvalidRequest(
                    "tool_choice asks for a call and the structured output for something else: drop one"
                )
            format, shape = shape_of(format, jinja.source)
            wanted = [s for s in schemas if named in (None, s["function"]["name"])]
            before = opening(format, reasoning, text, self._lark) if opens else Opening()
            check_tools(self._model, wanted)
            parallel = parallel_tool_calls and named is None
            lark = calls_grammar(shape, wanted, self._lark, parallel=parallel, first=before)
            params, output_of = dataclasses.replace(params, lark=lark), _no_output
        elif constrained(params):
            format = format if format in WHOLE else "none"
            if opens:
                first = opening(format, reasoning, text, self._lark, content=True)
                check_gbnf(params, first)
        elif not schemas and format not in WHOLE:
            format = "none"
        answer = AnswerFormat(format, schemas, reasoning, text, calls_only=mode == "required")
        params = AnswerParams.of(
            params,
            self._shown(format, reasoning),
            output_of or answer.content,
            " ".join(first.parts),
            first.rules,
            self._budget(params.max_reasoning_tokens, format, reasoning, text),
            calls=mode == "required",
        )
        return ChatRequest(text, tokens, params, answer, self._model.path.stem, self._tokens, seen, tail)

    def _budget(
        self, most: int | None, format: str, reasoning: tuple[str, str] | None, prompt: str
    ) -> ReasoningBudget | None:
        """What holds the answer's reasoning to `most` tokens; None where nothing is to be held."""
        marks = reasoning_marks(format, reasoning)
        tail = prompt.rstrip()
        if most is None or marks is None or tail.endswith(marks[1]):
            return None
        begin, end, head = marks
        forced = self._vocab.tokenize(end + head, add_special=False, parse_special=True)
        opened = tail.endswith(begin)
        return ReasoningBudget(most, begin.encode(), end.encode(), opened, tuple(forced.tolist()))

    def _lark(self, text: str) -> str:
        """A text in Lark, its control tokens by their ids."""
        parts = self._tokens.split(text)
        return " ".join(f"<[{p}]>" if isinstance(p, int) else json.dumps(p, ensure_ascii=False) for p in parts)

    def _shown(self, format: str, reasoning: tuple[str, str] | None) -> frozenset[int]:
        """The control tokens whose text the parser needs."""
        vocab = self._vocab
        found = set()
        for marker in markers(format, reasoning):
            ids = vocab.tokenize(marker, add_special=False, parse_special=True)
            if len(ids) == 1 and vocab.is_control(int(ids[0])):
                found.add(int(ids[0]))
        return frozenset(found)


def _check_ends(continue_final_message: Any, add_generation_prompt: Any) -> None:
    """Both say where the prompt ends: neither, or one of them, may be True."""
    for name, value in (
        ("continue_final_message", continue_final_message),
        ("add_generation_prompt", add_generation_prompt),
    ):
        if value is not None:
            flag(name, value)
    if continue_final_message and add_generation_prompt:
        raise InvalidRequest(
            "add_generation_prompt begins an answer, continue_final_message goes on with one: drop one"
        )


def _has_begun(last: Mapping[str, Any]) -> bool:
    """Whether a conversation's last message is an answer to go on with."""
    return last["role"] == "assistant" and bool(last["content"]) and not last.get("tool_calls")


def _variables(given: Any) -> dict[str, Any]:
    """chat_template_kwargs, checked."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise InvalidRequest(f"chat_template_kwargs must be a mapping of names, not {shown(given)}")
    taken = sorted(_TAKEN & given.keys())
    if taken:
        raise InvalidRequest(f"chat_template_kwargs cannot set {taken[0]!r}: it is an argument of its own")
    variables: dict[str, Any] = plain(given, "chat_template_kwargs")
    return variables


def _no_output(text: str) -> None:
    """Forced calls follow a grammar too, but what comes of them are the calls: `parsed` stays None."""
