"""What is checked of a GBNF grammar before libllama parses it.

libllama's parser and its matcher recurse: a grammar nested deeply enough ends the process. The limits here are far
above any grammar of use.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import InvalidRequest
from ..native.log import mark, why
from .gbnf import MOST, count_ways
from .model import Model

MAX_BYTES = 1 << 20
MAX_DEPTH = 256
MAX_REPEAT = 2000
MAX_RULES = 10_000
MAX_BEGINS = 50_000
MAX_SKIPS = 64


def check_grammar(grammar: object, root: object = "root", *, repeats_nothing: bool = True) -> None:
    """Refuse what libllama could not survive, or would not come back from.

    Args:
        repeats_nothing: whether the bundle bears `(x*)*`, Profile.has("grammar.repeats_nothing").

    Raises:
        InvalidRequest: not a text, NUL inside, over 1 MiB, brackets nested over 256 deep.
    """
    if not isinstance(grammar, str) or not grammar.strip():
        raise InvalidRequest(f"a grammar must be a text in GBNF, not {grammar!r:.60}")
    if not isinstance(root, str) or not root or "\0" in root:
        raise InvalidRequest(f"the grammar's root must be a rule's name, not {root!r:.60}")
    if "\0" in grammar:
        raise InvalidRequest("the grammar holds a NUL character")
    try:
        size = len(grammar.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("the grammar holds a lone surrogate, which has no UTF-8") from None
    if size > MAX_BYTES:
        raise InvalidRequest(f"the grammar has {size} bytes, more than {MAX_BYTES}")
    outside = _outside_literals(grammar)
    rules = set(re.findall(r"([\w-]+)\s*::=", outside))
    if root not in rules:  # older bundles end the process here
        raise InvalidRequest(f"the grammar has no rule {root!r}: it has {', '.join(sorted(rules)[:8]) or 'none'}")
    repeats = [int(n) for pair in re.findall(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}", outside) for n in pair if n]
    if max(repeats, default=0) > MAX_REPEAT:  # each repeat is written out as rules
        raise InvalidRequest(f"the grammar repeats something {max(repeats)} times, more than {MAX_REPEAT}")
    if outside.count("::=") > MAX_RULES:
        raise InvalidRequest(f"the grammar has {outside.count('::=')} rules, more than {MAX_RULES}")
    depth = deepest = 0
    for char in outside:
        if char == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif char == ")":
            depth -= 1
    if deepest > MAX_DEPTH:
        raise InvalidRequest(f"the grammar nests brackets {deepest} deep, more than {MAX_DEPTH}")
    ways = count_ways(grammar)
    if ways.begins > MAX_BEGINS or ways.skips > MAX_SKIPS:
        raise InvalidRequest(
            "the grammar is too ambiguous: libllama would follow "
            f"{'more than ' if ways.begins >= MOST else ''}{max(ways.begins, ways.skips)} ways at once"
        )
    if ways.repeats_nothing and not repeats_nothing:
        raise InvalidRequest(
            "the grammar repeats without end something that may be empty, which this bundle does not survive: "
            "make the inner part not empty, or use the v0.5.0 bundle"
        )


def grammar_sampler(model: Model, grammar: str, root: str = "root") -> Any:
    """The native sampler of a checked grammar (llama_sampler_init_grammar); the caller frees it.

    Raises:
        InvalidRequest: the check or libllama refused it; the message carries libllama's log.
    """
    check_grammar(grammar, root, repeats_nothing=model.library.profile.has("grammar.repeats_nothing"))
    point = mark()
    with model.shared():
        make = model.library.lib.llama_sampler_init_grammar
        sampler = make(model.vocab.pointer, grammar.encode(), root.encode())
    if not sampler:
        raise InvalidRequest(f"libllama refused the grammar{why(point)}")
    return sampler


def _outside_literals(grammar: str) -> str:
    """The grammar without its quoted texts, character classes and comments."""
    return re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', " ", grammar, flags=re.DOTALL)
