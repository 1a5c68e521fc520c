"""Lazy grammars: a grammar that holds from the moment that a trigger occurs.

libllama's own lazy grammar ends the process when the text of the trigger is not one that the grammar allows, and
when a pattern is none that std::regex takes. So triggers are found here, with Python's `re`: the grammar's sampler
waits outside the chain, and joins it when the trigger's text has passed it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import InvalidRequest
from ..params import shown
from .vocab import Vocab


def allows(ffi: Any, lib: Any, grammar: Any, token: int) -> bool:
    """Whether a grammar sampler would allow `token` next."""
    one = ffi.new("llama_token_data *", (token, 0.0, 0.0))
    array = ffi.new("llama_token_data_array *", (one, 1, -1, False))
    lib.llama_sampler_apply(grammar, array)
    return bool(one.logit != float("-inf"))


def compile_patterns(patterns: Sequence[str]) -> tuple[re.Pattern[bytes], ...]:
    """The trigger patterns, which look at bytes as libllama's do.

    Raises:
        InvalidRequest: one is no regular expression.
    """
    if isinstance(patterns, str):
        raise InvalidRequest("patterns must be a list of regular expressions")
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern.encode()))
        except (re.error, AttributeError, UnicodeError, OverflowError, RecursionError) as error:
            raise InvalidRequest(f"{shown(pattern)} is not a regular expression: {error}") from None
    return tuple(compiled)


class LazyGrammar:
    """A grammar's sampler, and what it waits for.

    Attributes:
        sampler: the native sampler; while `waiting` it is not in the chain.
        waiting: whether no trigger has occurred yet.
    """

    def __init__(self, sampler: Any, patterns: tuple[re.Pattern[bytes], ...], tokens: frozenset[int]) -> None:
        self.sampler = sampler
        self.waiting = True
        self._patterns, self._tokens = patterns, tokens
        self._text = b""

    def accept(self, ffi: Any, lib: Any, vocab: Vocab, token: int) -> bool:
        """Take note of a token of the output; True when it is the trigger, and its text has passed the grammar.

        Raises:
            InvalidRequest: the text that triggers is not one that the grammar allows; the token counts for nothing.
        """
        if token in self._tokens:
            run = [token]
        else:
            text = self._text + vocab.piece(token, special=True)
            start = self._find(text)
            if start is None:
                self._text = text
                return False
            run = _tokens_of(vocab, text[start:])
        for one in run:
            if not allows(ffi, lib, self.sampler, one):
                self.restart(lib)
                raise InvalidRequest(
                    f"token {token} triggers the lazy grammar, which does not allow the trigger's own text: "
                    "let the grammar begin with what its triggers match"
                )
            lib.llama_sampler_accept(self.sampler, one)
        return True

    def _find(self, text: bytes) -> int | None:
        """Where the constrained text begins: the first group that matched something, else the whole match."""
        for pattern in self._patterns:
            whole = pattern.pattern.startswith(b"^") and pattern.pattern.endswith(b"$")
            match = pattern.fullmatch(text) if whole else pattern.search(text)
            if match:
                groups = (i for i in range(1, pattern.groups + 1) if match.end(i) > match.start(i))
                return match.start(next(groups, 0))
        return None

    def restart(self, lib: Any) -> None:
        """Back to the grammar's start."""
        lib.llama_sampler_reset(self.sampler)

    def join(self, lib: Any, chain: Any, at: int) -> None:
        """Become the chain's sampler number `at`."""
        after = [lib.llama_sampler_chain_remove(chain, at) for _ in range(lib.llama_sampler_chain_n(chain) - at)]
        for sampler in (self.sampler, *after):
            lib.llama_sampler_chain_add(chain, sampler)
        self.waiting = False

    def forget(self) -> None:
        """Wait again, with no text."""
        self.waiting, self._text = True, b""

    def copy(self, sampler: Any) -> LazyGrammar:
        """The same state around a copy of the native sampler."""
        other = LazyGrammar(sampler, self._patterns, self._tokens)
        other.waiting, other._text = self.waiting, self._text
        return other


def freeing(lib: Any, lazy: Iterable[LazyGrammar]) -> Callable[[Any], None]:
    """What frees a chain: also the samplers that wait outside it."""

    def free(chain: Any) -> None:
        for item in lazy:
            if item.waiting:
                lib.llama_sampler_free(item.sampler)
        lib.llama_sampler_free(chain)

    return free


def _tokens_of(vocab: Vocab, raw: bytes) -> list[int]:
    """Tokens that write exactly `raw`."""
    ids: list[int] = vocab.tokenize(raw, add_special=False, parse_special=True).tolist()
    if b"".join(vocab.piece(t, special=True) for t in ids) == raw:
        return ids
    wanted = set(raw)
    table: dict[int, int] = {}
    for token in range(vocab.n_tokens):
        piece = vocab.piece(token, special=True)
        if len(piece) == 1 and piece[0] in wanted:
            table[piece[0]] = token
            if len(table) == len(wanted):
                return [table[byte] for byte in raw]
    raise InvalidRequest(f"the vocabulary cannot write {shown(raw)}, which triggers the lazy grammar")
