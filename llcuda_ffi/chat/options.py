"""What `chat` and `chat_stream` take as keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..sampling_settings import SamplingSettings
from .tools.functions import Tool

ToolChoice = Literal["auto", "none", "required"] | str | Mapping[str, Any]


class ChatOptions(SamplingSettings, total=False):
    """How a conversation is rendered, and the fields of SamplingParams.

    Attributes:
        tools: JSON schemas ({"type": "function", …}), or functions with type hints and a docstring.
        tool_choice: "auto", "none", "required", or a function's name; the last two force calls that parse.
        parallel_tool_calls: whether a forced answer may be several calls.
        response_format: OpenAI's; json_schema= and its like do the same.
        template: a Jinja text or a built-in name, in place of the model's own template.
        chat_template_kwargs: more for the template, such as {"enable_thinking": False}.
        documents: for templates that take them.
        continue_final_message: go on with the last message instead of starting an answer. None: where it is an
            assistant's text and add_generation_prompt is not given.
        add_generation_prompt: end the prompt with what opens the assistant's answer. None: where no message is
            continued. False: the prompt ends where the template ends the last message, as in transformers and vLLM.
        tool_format: how the model writes calls, where the template does not tell (chat.parsing.parser.FORMATS).
    """

    tools: Sequence[Tool] | None
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    response_format: Mapping[str, Any] | None
    template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    documents: Sequence[Mapping[str, Any]] | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None
    tool_format: str | None
