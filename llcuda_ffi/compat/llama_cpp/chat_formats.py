"""What llama-cpp-python's `chat_format=` names mean here: a template of each, and the texts that end an answer.

A format of the table at the end is four texts, "{}" standing for a message's: the system message's, the user's, the
assistant's, and what opens the answer. Where llama-cpp-python loses messages or writes other marks than the model was
trained with (intel, open-orca, openchat, saiga, snoozy), the layout is the model's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ...chat.template.builtin import TEMPLATES
from ...errors import UnsupportedModel


@dataclass(frozen=True)
class ChatFormat:
    """How conversations are written.

    Attributes:
        template: Jinja text, or the name of a template of `chat.template.builtin`.
        stop, stop_token_ids: texts and tokens that end an answer, beside the model's own end.
        add_generation_prompt: end the prompt with what opens the answer.
    """

    template: str
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    add_generation_prompt: bool = True


def chat_format(name: str) -> ChatFormat:
    """The format of that name: of llama-cpp-python's, or a built-in template's.

    Raises:
        UnsupportedModel: there is none of that name here.
    """
    if name in FORMATS:
        return FORMATS[name]
    if name in TEMPLATES:
        return ChatFormat(name)
    if name.startswith("functionary"):
        raise UnsupportedModel(
            f"chat_format={name!r}: leave it out. The files of functionary models have their template, from which "
            "tools and the form of their calls are read; for a file without one give "
            "chat_handler=Jinja2ChatFormatter(template, eos_token, bos_token)"
        )
    raise UnsupportedModel(
        f"no template is called {name!r:.60}: leave chat_format out to use the model's own, or choose "
        f"{', '.join(sorted({*TEMPLATES, *FORMATS}))}"
    )


def _turns(system: str, user: str, assistant: str, opening: str, *stop: str, default: str | None = None) -> ChatFormat:
    """A format whose turns are texts.

    Args:
        default: the system message of a conversation without one; None: it has none then.
    """

    def turn(text: str) -> str:
        before, _, after = text.partition("{}")
        return f"{{{{ {_literal(before)} ~ m.content ~ {_literal(after)} }}}}"

    first = "[{'role': 'system', 'content': " + _literal(default) + "}]" if default is not None else "[]"
    return ChatFormat(
        "{%- set first = [] if messages[0].role == 'system' else " + first + " -%}"
        "{%- for m in first + messages %}"
        "{%- if m.role == 'system' %}" + turn(system) + "{%- elif m.role == 'user' %}" + turn(user) + "{%- else %}"
        + turn(assistant) + "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ " + _literal(opening) + " }}{%- endif %}",
        stop,
    )  # fmt: skip


def _literal(text: str) -> str:
    """A text as Jinja writes it."""
    return json.dumps(text, ensure_ascii=False)


FORMATS = {
    "llama-2": ChatFormat("llama2"),
    "llama-3": ChatFormat("llama3", ("<|eot_id|>",)),
    "mistral-instruct": ChatFormat("mistral", ("</s>",)),
    "phi-3": ChatFormat("phi3", ("<|end|>",)),
    "chatml": ChatFormat("chatml", ("<|im_end|>",)),
    "chatml-function-calling": ChatFormat("chatml", ("<|im_end|>",)),
    "qwen": ChatFormat("chatml", ("<|im_end|>", "<|endoftext|>")),
    "zephyr": ChatFormat("zephyr", ("</s>",)),
    "gemma": ChatFormat("gemma", ("<end_of_turn>",)),
    "oasst_llama": _turns(
        "[INST] <<SYS>>\n{}\n<</SYS>>\n\n", "<|prompter|>{}</s>", "<|assistant|>{}</s>", "<|assistant|>", default=""
    ),
    "baichuan": _turns("{}", "<reserved_102>{}", "<reserved_103>{}", "<reserved_103>"),
    "baichuan-2": _turns("{}", "<reserved_106>{}", "<reserved_107>{}", "<reserved_107>"),
    # its own long system message is not here: give one
    "openbuddy": _turns("{}\n\n", "User: {}\n", "Assistant: {}\n", "Assistant:"),
    "redpajama-incite": _turns("{}\n", "<human>: {}\n", "<bot>: {}\n", "<bot>:", "<human>", default=""),
    "snoozy": _turns(
        "### Instruction:\n{}\n", "### Prompt: {}\n", "### Response: {}\n", "### Response:", "###"
    ),
    "phind": _turns(
        "### System Prompt\n{}\n\n", "### User Message: {}\n\n", "### Assistant: {}\n\n", "### Assistant:",
        default="You are an intelligent programming assistant.",
    ),
    "intel": _turns("### System:\n{}\n", "### User:\n{}\n", "### Assistant:\n{}\n", "### Assistant:\n", "### User:"),
    "open-orca": _turns(
        "{}<|end_of_turn|>\n", "User: {}<|end_of_turn|>\n", "Assistant: {}<|end_of_turn|>\n", "Assistant:",
        "<|end_of_turn|>", "\nUser:",
    ),
    "mistrallite": _turns(
        "<|system|>{}</s>", "<|prompter|>{} ", "</s>\n<|assistant|>{} ", "</s>\n<|assistant|>", default=""
    ),
    "pygmalion": _turns("<|system|>{}\n\n", "<|user|>\n{}\n\n", "<|model|>\n{}\n\n", "<|model|>\n", "\n", default=""),
    "chatglm3": _turns(
        "<|system|>\n{}", "<|user|>\n {}", "<|assistant|>\n {}", "<|assistant|>", "</s>", "<|user|>", default=""
    ),
    "openchat": _turns(
        "{}<|end_of_turn|>", "GPT4 Correct User: {}<|end_of_turn|>", "GPT4 Correct Assistant: {}<|end_of_turn|>",
        "GPT4 Correct Assistant:", "<|end_of_turn|>",
    ),
    "saiga": _turns("<s>system\n{}</s>", "<s>user\n{}</s>", "<s>bot\n{}</s>", "<s>bot\n", "</s>"),
}  # fmt: skip
