"""llama-cpp-python's chat formats: templates, and the handlers for models that see."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ...chat.template.config import template_of
from ...chat.template.template import ChatTemplate
from ...errors import InvalidRequest

if TYPE_CHECKING:
    from typing_extensions import Self

REGISTERED: dict[str, Any] = {}  # chat handlers by the names of chat_format that callers chose


@dataclass
class ChatFormatterResponse:
    """A rendered prompt, and what ends the answer."""

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: Any = None
    added_special: bool = False


class Jinja2ChatFormatter:
    """A chat template; called with messages it gives their prompt. `Llama(chat_handler=…)` takes it.

    Attributes:
        template: its Jinja text.
        eos_token, bos_token: what the template writes for them where it is called; a Llama writes its model's own.
        add_generation_prompt: end the prompt with what opens the answer.
        stop: texts that end an answer: eos_token, where it is one.
        stop_token_ids: tokens that do.
    """

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.template, self.eos_token, self.bos_token = template, eos_token, bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop = (eos_token,) if eos_token else ()
        self.stop_token_ids = tuple(stop_token_ids or ())
        self._parsed = ChatTemplate(template, {"eos_token": eos_token, "bos_token": bos_token})

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **variables: Any) -> ChatFormatterResponse:
        """The prompt of a conversation."""
        text = self._parsed.prompt(messages, **{"add_generation_prompt": self.add_generation_prompt, **variables})
        return ChatFormatterResponse(text, [*self.stop], added_special=True)

    def __reduce__(self) -> Any:
        asked = (self.template, self.eos_token, self.bos_token, self.add_generation_prompt, self.stop_token_ids)
        return type(self), asked

    def to_chat_handler(self) -> Jinja2ChatFormatter:
        """Itself."""
        return self


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> Jinja2ChatFormatter:
    """The formatter of a tokenizer_config.json.

    Raises:
        InvalidRequest: it has no chat template.
    """
    template = template_of(tokenizer_config)
    if template is None:
        raise InvalidRequest("the tokenizer_config has no chat_template")
    marks = {}
    for name in ("eos_token", "bos_token"):
        mark = tokenizer_config.get(name) or ""
        marks[name] = mark.get("content", "") if isinstance(mark, Mapping) else mark
    return Jinja2ChatFormatter(template, marks["eos_token"], marks["bos_token"], add_generation_prompt)


hf_tokenizer_config_to_chat_completion_handler = hf_tokenizer_config_to_chat_formatter


class FormatterHandler:
    """Conversations whose prompt a function of the caller's writes. `Llama(chat_handler=…)` takes it.

    Attributes:
        formatter: called with messages, functions, function_call, tools and tool_choice by their names; gives a
            ChatFormatterResponse.
    """

    def __init__(self, formatter: Callable[..., ChatFormatterResponse]) -> None:
        self.formatter = formatter

    def __call__(self, *, llama: Any, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
        """As `llama.create_chat_completion`, of a Llama that was made with this handler."""
        return llama.create_chat_completion(messages, **settings)


chat_formatter_to_chat_completion_handler = FormatterHandler

_F = TypeVar("_F", bound=Callable[..., Any])


def register_chat_format(name: str) -> Callable[[_F], _F]:
    """A decorator: `Llama(chat_format=name)` then has its prompts written by the function, as FormatterHandler does."""

    def decorator(function: _F) -> _F:
        REGISTERED[name] = FormatterHandler(function)
        return function

    return decorator


def register_chat_completion_handler(name: str) -> Callable[[_F], _F]:
    """A decorator: `Llama(chat_format=name)` then has the function (llama=…, messages=…, …) answer conversations."""

    def decorator(function: _F) -> _F:
        REGISTERED[name] = function
        return function

    return decorator


class Llava15ChatHandler:
    """For models that see: images of messages go through the projector. The template is the model's own, so that one
    class has every handler's name (Qwen25VLChatHandler, MTMDChatHandler, …).

    Attributes:
        clip_model_path: the projector's file.
    """

    def __init__(self, clip_model_path: str | os.PathLike[str], verbose: bool = True, **_: Any) -> None:
        self.clip_model_path = clip_model_path

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str | None = None, **_: Any) -> Self:
        """With a projector of the Hugging Face hub; `filename` may be a pattern such as "*mmproj*"."""
        return cls(f"{repo_id}:{filename}" if filename else repo_id)

    def __call__(self, *, llama: Any, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
        """As `llama.create_chat_completion`, of a Llama that was made with this handler."""
        return llama.create_chat_completion(messages, **settings)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name.endswith("ChatHandler"):
        return Llava15ChatHandler
    raise InvalidRequest(
        f"llama_chat_format has no {name!r} here: leave chat_format out to use the model's own template, or "
        "Jinja2ChatFormatter(template, eos_token, bos_token) as chat_handler"
    )
