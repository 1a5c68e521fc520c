"""llguidance's matcher as the engine's Constraint."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.model import Model
from ..core.vocab import Vocab
from ..enums import TokenAttr
from ..errors import InvalidRequest, MissingExtra
from ..hardware.cpu import usable_cores
from .grammars import Read, broken_part, check_length

if TYPE_CHECKING:
    import llguidance

_MASKED = np.float32("-inf")
_KEPT_GRAMMARS = 128
_LEAST_TOGETHER = 4
_SHALLOW_TEXT = 8192
# What a caller writes in Lark or as a pattern may name itself over and over: time and memory grow with the square of
# what it is written out as. This much takes a second or two; the default, hours.
_WRITTEN_FUEL = 20_000
_STACK = 1 << 30  # address space; memory is taken as it is needed
_stack_lock = threading.Lock()
_MOST_THREADS = 8
_MIDDLE = b"\x02"


class _Compiled:
    """A grammar that is being compiled, or is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.matcher: llguidance.LLMatcher | None = None


class _Guide:
    """llguidance's view of one model's vocabulary, and the grammars compiled for it."""

    def __init__(self, model: Model) -> None:
        import llguidance

        found = version("llguidance")
        if tuple(map(int, found.split(".")[:2])) < (1, 7):  # a vocabulary could end in one way only
            raise _missing(f" or newer, not {found}")
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, bool], _Compiled] = OrderedDict()
        self._unenforced: OrderedDict[str, list[str]] = OrderedDict()
        vocab = model.vocab
        eog = list(vocab.eog_tokens)
        # in two calls, as llguidance holds the interpreter's lock in each: other threads run between them
        plain = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(vocab)), eos_token=eog or None, slices=[])
        sleep(0)
        self.tokenizer = plain.with_slices(llguidance.LLTokenizer.json_slices())

    def matcher(self, grammars: Sequence[str], *, written: bool = False) -> llguidance.LLMatcher:
        """A fresh matcher of the first grammar that compiles; `written` by a caller, in Lark or as a pattern."""
        key = "\0".join(grammars), written
        with self._lock:
            found = self._compiled.setdefault(key, _Compiled())
            self._compiled.move_to_end(key)
            if len(self._compiled) > _KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        with found.lock:  # its own: nobody waits for the grammars of others
            if found.matcher is None:
                found.matcher = self._compile(grammars, written)
            return found.matcher.deep_copy()

    def _compile(self, grammars: Sequence[str], written: bool = False) -> llguidance.LLMatcher:
        message = ""
        for grammar in grammars:
            matcher = self._matcher(grammar, written)
            message = matcher.get_error() if matcher.is_error() else ""
            if not message and not np.frombuffer(matcher.compute_bitmask(), np.uint8).any():
                message = matcher.get_error() or "no token can begin it: it is unsatisfiable"
            if not message and matcher.is_stopped() and not matcher.is_accepting():
                message = "nothing fits it: it is unsatisfiable"
            if not message:
                matcher.reset()
                return matcher
        raise InvalidRequest(f"this structured output cannot be had: {' '.join(message.split())[:400]}")

    def unenforced(self, grammar: str) -> list[str]:
        """The keywords of a lenient schema that cannot be enforced.

        Raises:
            InvalidRequest: the rest does not compile either.
        """
        with self._lock:
            found = self._unenforced.get(grammar)
        if found is None:
            matcher = self._compile([grammar])
            found = [word for note in matcher.get_grammar_warnings() for word in re.findall(r'"([^"]+)"', note)]
            with self._lock:
                self._unenforced[grammar] = found
                if len(self._unenforced) > _KEPT_GRAMMARS:
                    self._unenforced.popitem(last=False)
        return found

    def fails(self, grammar: str) -> bool:
        """Whether a grammar does not compile."""
        return bool(self._matcher(grammar).is_error())

    def _matcher(self, grammar: str, written: bool = False) -> llguidance.LLMatcher:
        import llguidance

        fuel = _WRITTEN_FUEL if written else None
        limits = llguidance.LLParserLimits(verbose_errors=False, initial_lexer_fuel=fuel)

        def make() -> llguidance.LLMatcher:
            return llguidance.LLMatcher(self.tokenizer, grammar, log_level=0, limits=limits)

        check_length(grammar)
        return make() if len(grammar) < _SHALLOW_TEXT else _with_large_stack(make)


def _with_large_stack(make: Callable[[], llguidance.LLMatcher]) -> llguidance.LLMatcher:
    """The result of `make`. llguidance follows references by recursion, and a stack that overflows ends the process."""
    made: list[llguidance.LLMatcher] = []
    thread = threading.Thread(target=lambda: made.append(make()), name="llcuda_ffi-grammar", daemon=True)
    with _stack_lock:
        size = threading.stack_size(_STACK)
        try:
            thread.start()
        except RuntimeError:
            raise InvalidRequest("there is no memory to compile so large a schema or grammar") from None
        finally:
            threading.stack_size(size)
    thread.join()
    return made[0]


class _Tokens:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = weakref.proxy(vocab)
        self.eos_token_id = vocab.eos if vocab.eos is not None else vocab.n_tokens - 1
        self.bos_token_id = vocab.bos
        self.tokens = [vocab.piece(t, special=True) for t in range(vocab.n_tokens)]
        special = TokenAttr.CONTROL | TokenAttr.UNKNOWN | TokenAttr.UNUSED
        self.special_token_ids = [t for t in range(vocab.n_tokens) if vocab.attributes(t) & special]
        self._adds_space = self._bytes(self._ids(b"{")) != b"{"

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of a text in the middle of another one: without the space that some vocabularies begin with."""
        raw = text.encode() if isinstance(text, str) else text
        if not self._adds_space:
            return self._ids(raw)
        ids = self._ids(_MIDDLE + raw)  # a character that joins no token
        before = next((i for i in range(len(ids)) if self.tokens[ids[i]] == _MIDDLE), -1)
        return ids[before + 1 :]

    def _ids(self, raw: bytes) -> list[int]:
        found: list[int] = self._vocab.tokenize(raw, add_special=False, parse_special=False).tolist()
        return found

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[t] for t in ids)


@cache
def _executor(pid: int) -> llguidance.LLExecutor | None:
    """Threads of this process (a fork has none of its parent's) for the masks of a step; None for one core."""
    import llguidance

    cores = usable_cores()
    return llguidance.LLExecutor(min(cores, _MOST_THREADS)) if cores > 1 else None


_guides: weakref.WeakKeyDictionary[Model, _Guide] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _missing(which: str) -> MissingExtra:
    return MissingExtra(
        f"structured output needs llguidance 1.7{which}: pip install 'llguidance>=1.7' (GBNF works without)"
    )


def guide_of(model: Model) -> _Guide:
    """The guide of a model, made once.

    Raises:
        MissingExtra: llguidance is not installed, or too old.
    """
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise _missing(" or newer") from None
    with _lock:
        guide = _guides.get(model)
        if guide is None:
            guide = _guides[model] = _Guide(model)
        return guide


class GuidedConstraint:
    """One completion's place in its grammar."""

    def __init__(self, model: Model, grammars: Sequence[str], read: Read, *, written: bool = False) -> None:
        """`written`: by a caller, in Lark or as a pattern."""
        guide = guide_of(model)
        try:
            self._matcher = guide.matcher(grammars, written=written)
        except InvalidRequest as error:
            place = broken_part(grammars[-1], guide.fails)
            raise InvalidRequest(f"{error} (at {place})" if place else str(error)) from None
        self._read = read
        self._n_vocab = model.vocab.n_tokens
        self._bits: npt.NDArray[np.uint8] | None = None  # the next mask, where it is computed ahead

    @classmethod
    def ahead(cls, constraints: Sequence[GuidedConstraint]) -> None:
        """See engine/sampling/constraint.py. llguidance's threads compute them, without the interpreter's lock."""
        executor = _executor(os.getpid())
        if executor is None or len(constraints) < _LEAST_TOGETHER:
            return
        words = -(-constraints[0]._n_vocab // 32)
        masks = np.empty((len(constraints), words), np.int32)
        rows = [(constraint._matcher, i) for i, constraint in enumerate(constraints)]
        executor.unsafe_compute_mask_ptr(rows, masks.ctypes.data, 4 * words, len(rows))
        for constraint, row in zip(constraints, masks.view(np.uint8), strict=True):
            constraint._bits = row

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """See engine/sampling/constraint.py."""
        bits, self._bits = self._bits, None
        if bits is None:
            allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8, self._n_vocab)
        else:
            allowed = np.unpackbits(bits, count=self._n_vocab, bitorder="little")
        np.copyto(logits, _MASKED, where=allowed == 0)

    def accept(self, token: int) -> None:
        """See engine/sampling/constraint.py."""
        self._bits = None
        matcher = self._matcher
        if not matcher.consume_token(token):
            raise InvalidRequest(f"the structured output broke off: {matcher.get_error()[:300]}")

    def restart(self, tokens: Sequence[int]) -> None:
        """See engine/sampling/constraint.py."""
        self._bits = None
        self._matcher.reset()
        self._matcher.consume_tokens(list(tokens))

    def forced(self) -> list[int]:
        """See engine/sampling/constraint.py."""
        return self._matcher.compute_ff_tokens()

    def finished(self) -> bool:
        """See engine/sampling/constraint.py."""
        return self._matcher.is_stopped()

    def result(self, text: str) -> Any:
        """See engine/sampling/constraint.py."""
        return self._read(text)
