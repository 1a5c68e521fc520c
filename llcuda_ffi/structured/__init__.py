"""Structured output: answers that are JSON of a schema, match a regular expression or follow a grammar.

`constraint_for` turns what SamplingParams asks for into the object that masks a request's logits
(engine/sampling/constraint.py). Needs the extra `structured` (llguidance); GBNF grammars need nothing.
"""

from __future__ import annotations

from ..core.model import Model
from ..engine.answer_params import AnswerParams
from ..engine.sampling.constraint import Constraint, GrammarConstraint
from ..sampling_params import SamplingParams

__all__ = ["constraint_for"]


def constraint_for(model: Model, params: SamplingParams) -> Constraint | None:
    """What constrains a completion with these settings; None where nothing does.

    Raises:
        InvalidRequest: a schema or grammar that is broken, unsupported or unsatisfiable; the message names the part.
    """
    if params.grammar is not None:
        return GrammarConstraint(model, params.grammar)
    wanted = (params.json_schema, params.regex, params.choices, params.lark)
    if all(value is None for value in wanted):
        return None
    from .grammars import grammar_of, part_read, preceded
    from .guided import GuidedConstraint

    grammars, read = grammar_of(params)
    written = params.regex is not None or params.lark is not None
    if isinstance(params, AnswerParams):
        written = written and not params.calls
        if params.first:
            grammars = [preceded(grammar, params.first, params.rules) for grammar in grammars]
        if params.output_of is not None:
            read = part_read(params.output_of, read)
    return GuidedConstraint(model, grammars, read, written=written)
