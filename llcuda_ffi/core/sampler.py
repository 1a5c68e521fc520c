"""Sampler chains: from a row of logits to a token, in libllama (struct llama_sampler)."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendFailure, InvalidRequest
from ..params import INT32_MAX, UINT32_MAX, integer
from .candidates import CANDIDATE, Candidates
from .chain_samplers import SELECTING, ChainBuilder, checked_seed
from .context import Context
from .grammar import grammar_sampler
from .lazy_grammar import LazyGrammar, allows, compile_patterns, freeing
from .model import Model

if TYPE_CHECKING:
    from typing_extensions import Self


# samplers that draw one random number for each token, where there are several to draw from
_DRAWING = frozenset({"dist", "xtc"})


class SamplerChain(ChainBuilder):
    """A chain of samplers, built by calling its methods in order; the last one must select a token.

        chain = SamplerChain(model).top_k(40).top_p(0.95).temperature(0.8).dist(seed=1)
        token = chain.sample(context)

    Each method appends one sampler and returns the chain. All raise InvalidRequest for a value out of range.

    Attributes:
        names: the samplers in order, as llama.h calls them.
        attached: whether it was attached to a context once.
        seq_id: the sequence that it was attached to.
    """

    seq_id = 0

    def __init__(self, model: Model) -> None:
        if not isinstance(model, Model):
            raise InvalidRequest(f"a SamplerChain is made for a Model, not for {type(model).__name__}")
        self.model = model
        self._ffi, self._lib = model.library.ffi, model.library.lib
        params = self._ffi.new("struct llama_sampler_chain_params *", self._lib.llama_sampler_chain_default_params())
        params.no_perf = True
        self.names: list[str] = []
        self._grammars: list[Any] = []
        self.attached = False
        self._host: Context | None = None
        self._lazy: dict[int, LazyGrammar] = {}  # by its place in `names`
        free = freeing(self._lib, self._lazy.values())
        with model.shared():
            model.pointer  # noqa: B018 - raises when the model is closed
            self._own(
                _made(self._lib.llama_sampler_chain_init(params[0])),
                free,
                model,
                unlink=partial(_detach, weakref.ref(self)),
            )

    def __repr__(self) -> str:
        return f"<SamplerChain {' → '.join(self.names) or 'empty'}{' closed' if self.closed else ''}>"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def host(self) -> Context | None:
        """The context in whose graph it runs, or None."""
        host = self._host
        return host if host is not None and host.usable and host.samplers.get(self.seq_id) is self else None

    def _changeable(self) -> None:
        if self.host is not None:
            raise InvalidRequest("the chain runs in a context's compute graph: detach_sampler() first")

    def _append(self, name: str, sampler: Any, lazy: LazyGrammar | None = None) -> Self:
        if not sampler:
            raise InvalidRequest(f"libllama could not make the sampler {name}")
        added = False
        try:
            with self.exclusive():
                chain = self.pointer
                self._changeable()
                if self.names and self.names[-1] in SELECTING:
                    raise InvalidRequest(
                        f"nothing can follow {self.names[-1]}, which selects the token: add {name} before it"
                    )
                added = True
                if lazy is None:
                    self._lib.llama_sampler_chain_add(chain, sampler)
                else:
                    self._lazy[len(self.names)] = lazy
                self.names.append(name)
        finally:
            if not added:
                self._lib.llama_sampler_free(sampler)
        return self

    def _index(self, place: int) -> int:
        """Where the sampler at `place` in `names` is, or would be, in the native chain."""
        return place - sum(lazy.waiting for at, lazy in self._lazy.items() if at < place)

    # --- constraining ---

    def grammar(self, grammar: str, root: str = "root") -> SamplerChain:
        """Allow only tokens that continue a GBNF grammar.

        Raises:
            InvalidRequest: the grammar does not parse, is too large, or its root is missing; libllama's log says why.
        """
        sampler = grammar_sampler(self.model, grammar, root)
        self._append("grammar", sampler)
        self._grammars.append(sampler)
        return self

    def grammar_lazy(
        self, grammar: str, root: str = "root", *, patterns: Sequence[str] = (), tokens: Iterable[int] = ()
    ) -> SamplerChain:
        """The same, from the moment that a trigger occurs.

        Args:
            patterns: regular expressions searched in the output; the grammar applies from the first group that
                matched, else from the match.
            tokens: ids that trigger; the grammar applies from the token on.
        """
        compiled = compile_patterns(patterns)
        ids = frozenset(integer("a trigger token", t, 0, self.model.vocab.n_tokens - 1) for t in tokens)
        if not compiled and not ids:
            raise InvalidRequest("a lazy grammar needs a trigger pattern or a trigger token")
        sampler = grammar_sampler(self.model, grammar, root)
        return self._append("grammar", sampler, LazyGrammar(sampler, compiled, ids))

    # --- use ---

    def _selecting(self) -> None:
        if not self.names or self.names[-1] not in SELECTING:
            raise InvalidRequest(
                "the chain selects no token: end it with greedy(), dist(), mirostat(), mirostat_v2() or adaptive_p()"
            )

    def sample(self, context: Context, row: int = -1) -> int:
        """Choose a token from the logits of a batch row, and accept it (llama_sampler_sample).

        Raises:
            IndexError: that row has no logits.
            InvalidRequest: the chain selects nothing, or belongs to another model, or its other samplers left no
                token that its grammar allows.
        """
        self._belongs(context)
        with self.exclusive(), context.exclusive():
            self._selecting()
            logits = context.row_logits(row)
            if not self._grammars and not self._lazy:
                return int(self._lib.llama_sampler_sample(self.pointer, context.pointer, row))
            # libllama ends the process when a grammar is made to accept a token that it does not allow
            token = self._apply(logits)[2]
            if token is None:
                raise InvalidRequest("the chain selected no token")
            self._accept(token)
            return token

    def apply(self, logits: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], int | None]:
        """Run the chain over logits of your own, shape (n_vocab,), without accepting (llama_sampler_apply).

        Returns:
            the token ids left, their logits (both in the chain's order), and the selected token or None.
        """
        try:
            row = np.ascontiguousarray(logits, np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"logits must be an array of numbers: {error}") from None
        if row.shape != (self.model.vocab.n_tokens,):
            raise InvalidRequest(f"logits must have shape ({self.model.vocab.n_tokens},), not {row.shape}")
        if np.isnan(row).any():
            raise InvalidRequest("the logits hold NaN")
        with self.exclusive():
            return self._apply(row)

    def _apply(self, row: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], int | None]:
        pointer = self.pointer
        candidates = np.zeros(len(row), CANDIDATE)
        candidates["id"] = np.arange(len(row), dtype=np.int32)
        candidates["logit"] = row
        array = self._ffi.new("llama_token_data_array *")
        array.data = self._ffi.from_buffer("llama_token_data[]", candidates)
        array.size, array.selected, array.sorted = len(row), -1, False
        self._lib.llama_sampler_apply(pointer, array)
        left = np.frombuffer(self._ffi.buffer(array.data, array.size * CANDIDATE.itemsize), CANDIDATE)
        chosen = int(left["id"][array.selected]) if 0 <= array.selected < array.size else None
        return left["id"].copy(), left["logit"].copy(), chosen

    def accept(self, token: int) -> None:
        """Tell the chain of a token that it did not choose, a prompt's for example (llama_sampler_accept).

        Raises:
            InvalidRequest: the id is not in the vocabulary, or the chain's grammar does not allow it.
        """
        with self.exclusive():
            self._accept(self.model.vocab.check_id(token))

    def _accept(self, token: int) -> None:
        chain, ffi, lib = self.pointer, self._ffi, self._lib
        holding = (lazy.sampler for lazy in self._lazy.values() if not lazy.waiting)
        for grammar in (*self._grammars, *holding):
            if not allows(ffi, lib, grammar, token):
                raise InvalidRequest(
                    f"the grammar does not allow token {token} here (if the chain chose it: put the grammar before "
                    "the samplers that narrow the choice)"
                )
        triggered: dict[int, LazyGrammar] = {}
        try:
            for place, lazy in self._lazy.items():
                if lazy.waiting and lazy.accept(ffi, lib, self.model.vocab, token):
                    triggered[place] = lazy
        except InvalidRequest:
            for lazy in triggered.values():
                lazy.restart(lib)
            raise
        lib.llama_sampler_accept(chain, token)
        for place, lazy in triggered.items():
            lazy.join(lib, chain, self._index(place))

    def reset(self) -> None:
        """Forget what was accepted; random states start again from their seeds."""
        with self.exclusive():
            chain = self.pointer
            self._lib.llama_sampler_reset(chain)
            for place, lazy in self._lazy.items():
                if not lazy.waiting:
                    self._lib.llama_sampler_chain_remove(chain, self._index(place))
                lazy.forget()

    def reseed(self, seed: int) -> None:
        """Give the last sampler, which must be dist, a new seed.

        Raises:
            InvalidRequest: the chain ends with another one.
        """
        if self.names[-1:] != ["dist"]:
            raise InvalidRequest("a chain that ends with dist() can get a new seed, no other")
        with self.exclusive():
            lib, chain = self._lib, self.pointer
            self._changeable()
            lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, self._index(len(self.names) - 1)))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(checked_seed(seed)))

    def attach(self, context: Context, seq_id: int) -> bool:
        """Run the chain in the compute graph of one sequence (llama_set_sampler), until `Context.detach_sampler`.

        libllama allows it once in the chain's life, and aborts at the second time. The context keeps the chain, to
        which nothing can be added meanwhile; closing the chain detaches it.

        Returns:
            whether it is attached now.

        Raises:
            InvalidRequest: the chain has a grammar, or belongs to another model; no such sequence.
            UnsupportedByBundle: the loaded llama.cpp cannot do it.
        """
        self._belongs(context)
        self.model.library.profile.require("llama_set_sampler")
        seq = integer("a sequence id", seq_id, 0, context.n_seq_max - 1)
        with self.exclusive(), context.exclusive():
            if self._grammars or self._lazy:
                raise InvalidRequest("a chain with a grammar cannot run in the compute graph")
            if self.attached:
                return False
            self.attached = True
            if not self._lib.llama_set_sampler(context.pointer, seq, self.pointer):
                return False
            self._host, self.seq_id = context, seq
            context.samplers[seq] = self
            return True

    def _belongs(self, context: Context) -> None:
        if not isinstance(context, Context):
            raise InvalidRequest(f"a Context is wanted, not {type(context).__name__}")
        if context.model is not self.model:
            raise InvalidRequest("the chain and the context belong to different models")

    def accept_all(self, tokens: Iterable[int]) -> None:
        """As `accept` for each token, without its checks: of the vocabulary, and the chain has no grammar."""
        with self.exclusive():
            accept, chain = self._lib.llama_sampler_accept, self.pointer
            for token in tokens:
                accept(chain, token)

    def skip(self, n: int) -> None:
        """Have the random states of dist and xtc be as after `n` tokens, each drawn from several.

        Those of mirostat and adaptive_p hang on what was drawn from: they stay.
        """
        n = integer("n", n, 0, INT32_MAX)
        candidates = Candidates(self.model.library, 2)
        with self.exclusive():
            for place, name in enumerate(self.names):
                if name in _DRAWING:
                    candidates.draw(self._lib.llama_sampler_chain_get(self.pointer, self._index(place)), n)

    def clone(self) -> SamplerChain:
        """A copy with the same state (llama_sampler_clone)."""
        with self.exclusive():
            other = SamplerChain.__new__(SamplerChain)
            other.model, other._ffi, other._lib = self.model, self._ffi, self._lib
            other.names = list(self.names)
            other.attached = False
            other._host = None
            lib, pointer = self._lib, _made(self._lib.llama_sampler_clone(self.pointer))
            other._lazy = {}
            other._own(
                pointer, freeing(lib, other._lazy.values()), self.model, unlink=partial(_detach, weakref.ref(other))
            )
            other._grammars = []
            for place, name in enumerate(self.names):
                lazy = self._lazy.get(place)
                if lazy is not None and lazy.waiting:
                    other._lazy[place] = lazy.copy(_made(lib.llama_sampler_clone(lazy.sampler)))
                elif name == "grammar":
                    sampler = lib.llama_sampler_chain_get(pointer, self._index(place))
                    if lazy is None:
                        other._grammars.append(sampler)
                    else:
                        other._lazy[place] = lazy.copy(sampler)
            return other

    @property
    def seed(self) -> int | None:
        """The seed of the chain's last random sampler, or None (llama_sampler_get_seed)."""
        with self.exclusive():
            seed = int(self._lib.llama_sampler_get_seed(self.pointer))
            return None if seed == UINT32_MAX else seed


def _detach(chain: weakref.ref[SamplerChain]) -> None:
    """Take a chain that is being closed out of its context's graph. One that nobody holds is in none."""
    alive = chain()
    if alive is not None and alive.host is not None:
        alive.host.detach_sampler(alive.seq_id)


def sample_rows(context: Context, jobs: Sequence[tuple[SamplerChain, int]]) -> list[int]:
    """The tokens that chains choose from rows of the last batch: `SamplerChain.sample` without its checks.

    For a caller that holds `context.exclusive()` and knows that the rows have logits, and that each chain selects, is
    of the context's model, has no grammar and is used by nobody else (llama_sampler_sample).
    """
    if not jobs:
        return []
    sample, pointer = context.model.library.lib.llama_sampler_sample, context.pointer
    return [sample(chain.pointer, pointer, row) for chain, row in jobs]


def _made(pointer: Any) -> Any:
    if not pointer:
        raise BackendFailure("libllama could not make a sampler: is there memory left?")
    return pointer
