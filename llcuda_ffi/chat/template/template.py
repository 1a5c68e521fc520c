"""A chat template: from a conversation to the text that the model continues."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ...errors import InvalidRequest
from ...params import shown
from ..messages import (
    Message,
    check_known,
    merge_system,
    normalize,
    one_call_each,
    one_system,
    openai_forms,
    plain,
    require_text,
    short_call_ids,
    with_arguments,
)
from ..tools.plain import with_call_texts
from .builtin import TEMPLATES
from .capabilities import TemplateCapabilities
from .config import of_config
from .renderer import shared

_CONTINUE = "⁂continue the final message here⁂ "


class ChatTemplate:
    """A Jinja chat template with the special tokens of its model.

    Attributes:
        source: the Jinja text.
        variables: what every rendering sees: bos_token, eos_token and the like.
        timeout: seconds after which a rendering is stopped.
    """

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None, *, timeout: float = 10.0) -> None:
        """
        Args:
            source: the Jinja text, the name of a built-in template (see `builtin.TEMPLATES`), or the JSON text of a
                tokenizer_config.json.
        """
        if not isinstance(source, str) or not source:
            raise InvalidRequest(f"a chat template must be a Jinja text or a name, not {shown(source)}")
        self.source = TEMPLATES.get(source) or of_config(source) or source
        if self.source is source and "{" not in source:
            raise InvalidRequest(
                f"no built-in chat template is called {shown(source)}, and it is no Jinja text. "
                f"Names: {', '.join(sorted(TEMPLATES))}"
            )
        self.variables = plain(dict(variables or {}), "the template's variables")
        self.timeout = timeout

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt, as Hugging Face's apply_chat_template(tokenize=False) gives it for the same arguments.

        Args:
            messages: the conversation; arguments of tool calls reach the template as they are given here.
            tools: JSON schemas ({"type": "function", "function": {…}}).
            add_generation_prompt: end with what opens the assistant's answer.
            continue_final_message: leave the last message open, to be continued.
            **variables: more for the template (enable_thinking and the like); these win over special tokens.

        Raises:
            InvalidRequest: the template is broken, refuses the conversation, or was stopped; the text says
                which.
        """
        return self._render(
            normalize(messages),
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )

    def _render(
        self,
        chat: list[dict[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        if continue_final_message:
            if add_generation_prompt:
                raise InvalidRequest("continue_final_message and add_generation_prompt exclude each other")
            final = _mark_final(chat)
        seen = {
            **self.variables,
            **plain(variables, "chat_template_kwargs"),
            "messages": chat,
            "tools": None if tools is None else plain(list(tools), "tools"),
            "documents": None if documents is None else plain(list(documents), "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        text = shared.render(self.source, seen, self.timeout)
        return _cut(text, final) if continue_final_message else text

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> str:
        """`render` for a conversation in OpenAI's shapes, brought to the form that this template reads.

        Args:
            messages: of roles and keys that OpenAI's messages have, or that the template names.
            tools: JSON schemas.
            **settings: as for `render`.

        Raises:
            InvalidRequest: as for `render`, or a role or key that nobody reads.
        """
        can = self.capabilities
        chat = normalize(messages)
        require_text(chat)
        check_known(chat, can.mentions)
        chat = openai_forms(chat)
        for message in chat:
            if message["role"] == "developer" and not can.developer:
                message["role"] = "system"
        systems = [i for i, message in enumerate(chat) if message["role"] == "system"]
        if systems and not can.system:
            chat = merge_system(chat)
        elif systems not in ([], [0]) and not can.system_anywhere:
            chat = one_system(chat)
        if not can.calls and any(message.get("tool_calls") for message in chat):
            chat = [with_call_texts(message) for message in chat]
        elif any(message.get("tool_calls") for message in chat):
            chat = with_arguments(chat, can.argument_style)
            if any(len(message.get("tool_calls", ())) > 1 for message in chat) and not can.parallel_calls:
                chat = one_call_each(chat)
            if not can.long_call_ids:
                chat = short_call_ids(chat)
        for message in chat:
            if not message["content"] and message.get("tool_calls"):
                message["content"] = can.call_content
            elif not can.texts:
                message["content"] = [{"type": "text", "text": message["content"]}]
        tools = [with_parameters(tool) for tool in tools] if tools else can.no_tools
        if can.mentions("functions") and can.mentions("datetime"):  # FireFunction's names
            settings = {
                "functions": json.dumps(tools or [], indent=4, ensure_ascii=False),
                "datetime": datetime.now().strftime("%Y-%m-%d"),
                **settings,
            }
        return self._render(chat, tools=tools, **settings)

    @functools.cached_property
    def capabilities(self) -> TemplateCapabilities:
        """What the template takes."""

        def render(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str:
            return self._render([dict(m) for m in messages], tools=tools, add_generation_prompt=True)

        return TemplateCapabilities(self.source, render)


def with_parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool whose function has parameters and a description, perhaps of nothing: many templates read them."""
    function = {k: v for k, v in tool["function"].items() if v is not None}
    parameters = {"type": "object", "properties": {}, **function.pop("parameters", {})}
    return {**tool, "function": {"description": "", **function, "parameters": parameters}}


def _mark_final(chat: list[dict[str, Any]]) -> str:
    """Put a mark at the end of the last message's text; returns that text."""
    content = chat[-1].get("content")
    if isinstance(content, str):
        chat[-1]["content"] = content + _CONTINUE
        return content
    for part in reversed(content or ()):
        if "text" in part:
            text: str = part["text"]
            part["text"] = text + _CONTINUE
            return text
    raise InvalidRequest("continue_final_message: the last message has no text to continue")


def _cut(text: str, final: str) -> str:
    at = text.rfind(_CONTINUE.strip())
    if at < 0 or final.strip() not in text:
        raise InvalidRequest("continue_final_message: the chat template does not write the last message's text")
    # a template that trims its messages took the mark's space away, so it takes the text's too
    return text[:at] if text[at:].startswith(_CONTINUE) else text[:at].rstrip()
