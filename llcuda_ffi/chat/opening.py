"""What a constrained answer may begin with: the model's reasoning, and the head of the message that is the answer.

The constraint holds for what comes after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InvalidRequest
from ..sampling_params import SamplingParams

# formats whose parts have heads: what opens and closes reasoning, and what opens the answer
_HEADS = {
    "harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant", "<|channel|>final<|message|>"),
    "glimmer": (" to=self<|message|>", "<|eom|><|start|>assistant", " to=user<|message|>"),
    "solar": ("<|think|>", "<|end|><|begin|>assistant", "<|content|>"),
    "kimi-k3": ("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>"),
    "functionary-v3.2": ("", "", "all\n"),
}


@dataclass(frozen=True)
class Opening:
    """The start of an answer in llguidance's Lark.

    Attributes:
        parts: what comes first, in order.
        rules: the rules that it needs.
        thinks: whether reasoning must come: the prompt opened it.
    """

    parts: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    thinks: bool = False


def opening(
    format: str, reasoning: tuple[str, str] | None, prompt: str, literal: Callable[[str], str], *, content: bool = False
) -> Opening:
    """What comes before the constrained part of an answer to `prompt`.

    Reasoning that the prompt opened goes to its end; where the prompt says nothing, the model may begin with some;
    where the prompt closed it, there is none.

    Args:
        literal: a text as Lark, control tokens as such.
        content: whether the constrained part is content, and not calls.
    """
    begin, end, head = _HEADS.get(format) or (*(reasoning or ("", "")), "")
    parts, rules = [], []
    tail = prompt.rstrip()
    thinks = bool(begin) and tail.endswith(begin)
    answering = bool(head) and prompt.endswith(head)
    if begin and not answering and not tail.endswith(end):
        parts.append("thought" if thinks else "thought?")
        close = literal(end)
        if close.startswith("<["):  # a control token is no text
            rules = [f"thought: {'' if thinks else literal(begin)} THOUGHT? {close} GAP?", "THOUGHT: /(.|\\n)+/"]
        else:
            rules = [
                f"thought: {'' if thinks else literal(begin)} closed GAP?",
                f"closed[lazy]: /(.|\\n)*{_regex(end)}/",
            ]
        rules.append("GAP: /\\n{1,2}/")
    if head and content and not answering:
        parts.append(literal(head))
    return Opening(tuple(parts), tuple(rules), thinks)


def reasoning_marks(format: str, reasoning: tuple[str, str] | None) -> tuple[str, str, str] | None:
    """What opens reasoning, what closes it, and what opens the answer after it; None for models without."""
    begin, end, head = _HEADS.get(format) or (*(reasoning or ("", "")), "")
    return (begin, end, head) if begin and end else None


def check_gbnf(params: SamplingParams, first: Opening) -> None:
    """Refuse a GBNF grammar, which holds from the first token, where the model must think first.

    Raises:
        InvalidRequest: the prompt opened the model's reasoning.
    """
    if params.grammar is not None and first.thinks:
        raise InvalidRequest(
            "grammar= (GBNF) holds from the first token, but the prompt opened the model's reasoning: turn it off "
            "(chat_template_kwargs), or use json_schema=, regex=, choices= or lark=, which begin after it"
        )


def _regex(text: str) -> str:
    # "\\<" would be a word's start
    return re.sub(r"[.+*?()|\[\]{}^$\\/#&~-]", r"\\\g<0>", text)
