"""What a chat adds to the settings of a caller, so that its answer can be read by its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from ..sampling_params import SamplingParams
from .sampling.reasoning_budget import ReasoningBudget


@dataclass(frozen=True, kw_only=True)
class AnswerParams(SamplingParams):
    """Settings of an answer in a format.

    Attributes:
        shown: control tokens that are written into the text, because they mark the parts of the answer.
        first, rules: what comes before a structured output, in llguidance's Lark, and the rules that it needs.
        output_of: the part of the answer that is the structured output, None where there is none.
        budget: what limits its reasoning.
        calls: `lark` is the grammar of tool calls, made here.
    """

    shown: frozenset[int] = frozenset()
    first: str = ""
    rules: tuple[str, ...] = ()
    output_of: Callable[[str], str | None] | None = None
    budget: ReasoningBudget | None = None
    calls: bool = False

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        shown: frozenset[int],
        output_of: Callable[[str], str | None] | None = None,
        first: str = "",
        rules: tuple[str, ...] = (),
        budget: ReasoningBudget | None = None,
        calls: bool = False,
    ) -> AnswerParams:
        """`params` with them."""
        given = {f.name: getattr(params, f.name) for f in fields(SamplingParams)}
        return cls(**given, shown=shown, first=first, rules=rules, output_of=output_of, budget=budget, calls=calls)
