"""A chat template: from a conversation to the text that the model continues."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import InvalidRequest
from ..messages import Message, join_parts, normalize, plain, with_arguments
from .builtin import TEMPLATES
from .renderer import shared

_CONTINUE = "⁂continue the final message here⁂ "
_PROBE = "llcuda-probe"


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
            source: the Jinja text, or the name of a built-in template (see `builtin.TEMPLATES`).
        """
        if not isinstance(source, str) or not source:
            raise InvalidRequest(f"a chat template must be a Jinja text or a name, not {source!r:.60}")
        self.source = TEMPLATES.get(source, source)
        if self.source is source and "{" not in source:
            raise InvalidRequest(
                f"no built-in chat template is called {source!r:.60}, and it is no Jinja text. "
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
        chat = normalize(messages)
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

    def prompt(self, messages: Sequence[Message], **settings: Any) -> str:
        """`render` for OpenAI's shapes: arguments of tool calls and text parts are brought to the form this
        template reads.

        Raises:
            InvalidRequest: as for `render`.
        """
        chat = normalize(messages)
        if any(isinstance(m.get("content"), list) for m in chat) and not self.reads_parts:
            chat = join_parts(chat)
        if any(m.get("tool_calls") for m in chat):
            chat = with_arguments(chat, self.argument_style)
        return self.render(chat, **settings)

    @functools.cached_property
    def reads_parts(self) -> bool:
        """Whether content given as a list of text parts is written as its text, and not as a list."""
        text = self._try([_user([{"type": "text", "text": _PROBE}])])
        return _PROBE in text and not any(sign in text for sign in ("'type'", '"type"'))

    @functools.cached_property
    def argument_style(self) -> str:
        """How arguments of tool calls must reach this template: "object" or "text" (see `with_arguments`)."""
        good = json.dumps({_PROBE: 1})

        def written(arguments: object) -> str:
            call = {
                "id": "abcdefghi",
                "type": "function",
                "function": {"name": "probe", "arguments": arguments},
            }
            answer = {"role": "assistant", "content": "", "tool_calls": [call]}
            result = {"role": "tool", "tool_call_id": "abcdefghi", "name": "probe", "content": "1"}
            return self._try([_user("q"), answer, result]) or self._try([_user("q"), answer])

        as_object, as_text = written({_PROBE: 1}), written(good)
        if good in as_text and (not as_object or str({_PROBE: 1}) in as_object):
            return "text"
        return "object"

    @functools.cached_property
    def takes_tools(self) -> bool:
        """Whether tools given to the template show in what it writes."""
        tool = {
            "type": "function",
            "function": {
                "name": _PROBE,
                "description": "d",
                "parameters": {"type": "object", "properties": {}},
            },
        }
        return _PROBE in self._try([_user("q")], tools=[tool])

    def _try(self, messages: Sequence[Message], **settings: Any) -> str:
        try:
            return self.render(messages, add_generation_prompt=True, **settings)
        except InvalidRequest:
            return ""


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


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
