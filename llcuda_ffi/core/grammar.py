"""What is checked of a GBNF grammar before libllama parses it.

libllama's parser and its matcher recurse, and it follows all ways of an ambiguous grammar at once: a grammar nested
deeply enough ends the process, and from an ambiguous one it never comes back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..native.handle import Handle
from ..native.log import listen
from ..params import shown
from .candidates import CANDIDATE
from .gbnf import Grammar, read_grammar
from .grammar_paths import MOST, count_paths
from .lazy_grammar import allows
from .model import Model

MAX_BYTES = 1 << 20
MAX_BEGINS = 50_000
MAX_SKIPS = 64


def check_grammar(grammar: object, root: object = "root", *, repeats_nothing: bool = True) -> Grammar:
    """Refuse what libllama could not survive, or would not come back from.

    Args:
        repeats_nothing: whether the bundle bears `(x*)*`, Profile.has("grammar.repeats_nothing").

    Raises:
        InvalidRequest: not a text, NUL inside, over 1 MiB, no GBNF, or too large or ambiguous (gbnf.py).
    """
    if not isinstance(grammar, str) or not grammar.strip():
        raise InvalidRequest(f"a grammar must be a text in GBNF, not {shown(grammar)}")
    if not isinstance(root, str) or not root or "\0" in root:
        raise InvalidRequest(f"the grammar's root must be a rule's name, not {shown(root)}")
    if "\0" in grammar:
        raise InvalidRequest("the grammar holds a NUL character")
    try:
        size = len(grammar.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("the grammar holds a lone surrogate, which has no UTF-8") from None
    if size > MAX_BYTES:
        raise InvalidRequest(f"the grammar has {size} bytes, more than {MAX_BYTES}")
    read = read_grammar(grammar)
    if root not in read.rules:  # older bundles end the process here
        names = ", ".join(sorted(name[:60] for name in read.rules)[:8])
        raise InvalidRequest(f"the grammar has no rule {shown(root)}: it has {names or 'none'}")
    ways = count_paths(read)
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
    return read


def grammar_sampler(model: Model, grammar: str, root: str = "root") -> Any:
    """The native sampler of a checked grammar (llama_sampler_init_grammar); the caller frees it.

    Raises:
        InvalidRequest: the check or libllama refused it; the message carries libllama's log.
    """
    read = check_grammar(grammar, root, repeats_nothing=model.library.profile.has("grammar.repeats_nothing"))
    for text in read.tokens:
        if len(model.vocab.tokenize(text, add_special=False, parse_special=True)) != 1:
            raise InvalidRequest(f"the grammar's {text[:60]} is not one token of {model.path.name}")
    with model.shared(), listen() as heard:
        make = model.library.lib.llama_sampler_init_grammar
        sampler = make(model.vocab.pointer, grammar.encode(), root.encode())
    if not sampler:
        raise InvalidRequest(f"libllama refused the grammar{heard.why()}")
    return sampler


class GrammarSampler(Handle):
    """A GBNF grammar alone, outside of a chain (llama_sampler_init_grammar). One thread at a time."""

    def __init__(self, model: Model, grammar: str, root: str = "root") -> None:
        """Compile a grammar.

        Raises:
            InvalidRequest: it does not parse, or is too large; libllama's log says why.
        """
        self._library = model.library
        with model.shared():
            self._own(grammar_sampler(model, grammar, root), model.library.lib.llama_sampler_free, model)
        n_vocab = model.vocab.n_tokens
        ffi = model.library.ffi
        self._candidates = np.zeros(n_vocab, CANDIDATE)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._array: Any = ffi.new("llama_token_data_array *")
        self._view = ffi.from_buffer("llama_token_data[]", self._candidates)

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits of tokens that cannot come next to -inf, in place; shape (n_vocab,)."""
        with self.exclusive():
            candidates, array = self._candidates, self._array
            candidates["id"] = self._ids
            candidates["logit"] = logits
            array.data, array.size, array.selected, array.sorted = self._view, len(candidates), -1, False
            self._library.lib.llama_sampler_apply(self.pointer, array)
            logits[:] = candidates["logit"]

    def accept(self, token: int) -> None:
        """The token that was chosen.

        Raises:
            InvalidRequest: one that `mask` did not let through, at which libllama would end the process.
        """
        with self.exclusive():
            lib, pointer = self._library.lib, self.pointer
            if not allows(self._library.ffi, lib, pointer, token):
                raise InvalidRequest(
                    "bans and samplers left no token that the grammar allows: it cannot go on from here"
                )
            lib.llama_sampler_accept(pointer, token)

    def reset(self) -> None:
        """Back to the grammar's start."""
        with self.exclusive():
            self._library.lib.llama_sampler_reset(self.pointer)
