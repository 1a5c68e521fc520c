"""Rows of logits that the compute graph reduces before they are copied (a llama_sampler_i of our own).

A chain whose only sampler is ours is attached to sequences of a context. When a graph is built, libllama hands the
sampler each row of those sequences as a view; the tensor behind it holds all rows. From that the first call builds,
for all rows at once: the maximum of each block of tokens, the blocks with the highest maxima, and a table of their
logits. A row of the table is what libllama copies in place of the row of logits. Nothing is called while it computes.

What a row of the table holds, all float32: the logits of N_BEST blocks, that with the highest maximum first; the
numbers of those blocks; the logits of the `rest` tokens that fill no block; and the sum of the whole row, which is NaN
where one of its logits is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedByBundle
from ..native.handle import Handle
from ..native.log import keep, listen
from .context import Context
from .model import Model
from .outputs import Floats

N_BEST = 64  # blocks of a row
# a row of more is sorted in several kernels
_MOST_BLOCKS = 1024
_LEAST_BLOCK = 64
# struct ggml_tensor, before its name (ggml_get_name): view_src, view_offs, data
_VIEW_SRC, _VIEW_OFFS = -24, -16


class RowLayout:
    """How a row of so many logits is reduced.

    Attributes:
        block: tokens of a block.
        n_blocks: blocks of a row.
        rest: tokens after the last block.
        width: float32 of a reduced row.
    """

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.block = _LEAST_BLOCK
        while n_vocab // self.block > _MOST_BLOCKS:
            self.block *= 2
        self.n_blocks = n_vocab // self.block
        self.rest = n_vocab - self.n_blocks * self.block
        self.width = N_BEST * (self.block + 1) + self.rest + 1

    @property
    def pays(self) -> bool:
        """Whether less than half of a row is left."""
        return 2 * self.width <= self.n_vocab

    def blocks(self, rows: Floats) -> Floats:
        """The logits of the best blocks: a view of reduced rows, float32 (rows, N_BEST, block)."""
        return rows[:, : N_BEST * self.block].reshape(len(rows), N_BEST, self.block)

    def numbers(self, rows: Floats) -> npt.NDArray[np.int64]:
        """The numbers of those blocks: int64 (rows, N_BEST)."""
        start = N_BEST * self.block
        return rows[:, start : start + N_BEST].astype(np.int64)

    def last(self, rows: Floats) -> Floats:
        """The logits of the tokens after the last block: float32 (rows, rest)."""
        return rows[:, self.width - 1 - self.rest : self.width - 1]

    def is_of(self, reduced_row: Floats, row: Floats) -> bool:
        """Whether a reduced row, float32 (1, width), agrees with a whole one in its best block."""
        start = int(self.numbers(reduced_row)[0, 0]) * self.block
        return np.array_equal(self.blocks(reduced_row)[0, 0], row[start : start + self.block], equal_nan=True)

    def sums(self, rows: Floats) -> Floats:
        """The sum of each whole row: float32 (rows,)."""
        return rows[:, self.width - 1]


def can_reduce(model: Model) -> bool:
    """Whether the loaded llama.cpp can reduce rows, and rows of this vocabulary are worth it."""
    library = model.library
    if not (library.profile.has("ggml_pool_2d") and RowLayout(model.vocab.n_tokens).pays):
        return False
    try:
        _check_views(library.ffi, library.lib)
    except UnsupportedByBundle:
        return False
    return True


def reduced(lib: Any, ctx: Any, rows: Any, layout: RowLayout) -> Any:
    """The nodes of a graph that reduce rows.

    Args:
        rows: the tensor, float32 (rows, n_vocab), contiguous.

    Returns:
        the tensor float32 (rows, layout.width).
    """
    block, n_vocab, n_blocks = layout.block, layout.n_vocab, layout.n_blocks
    n = lib.ggml_nelements(rows) // n_vocab
    peaks = lib.ggml_pool_2d(ctx, rows, lib.GGML_OP_POOL_MAX, block, 1, block, 1, 0.0, 0.0)
    best = lib.ggml_argsort_top_k(ctx, peaks, N_BEST)
    blocks = lib.ggml_view_3d(ctx, rows, block, n_blocks, n, 4 * block, 4 * n_vocab, 0)
    table = lib.ggml_reshape_2d(ctx, lib.ggml_get_rows(ctx, blocks, best), N_BEST * block, n)
    table = lib.ggml_concat(ctx, table, lib.ggml_cast(ctx, best, lib.GGML_TYPE_F32), 0)
    if layout.rest:
        rest = lib.ggml_view_2d(ctx, rows, layout.rest, n, 4 * n_vocab, 4 * n_blocks * block)
        table = lib.ggml_concat(ctx, table, lib.ggml_cont(ctx, rest), 0)
    return lib.ggml_concat(ctx, table, lib.ggml_sum_rows(ctx, rows), 0)


class RowReduction:
    """Reduces the rows of some sequences of one context.

    Attributes:
        layout: what a reduced row holds.
        attached: the sequences whose rows are reduced.
    """

    def __init__(self, context: Context) -> None:
        """Raises:
        UnsupportedByBundle: the loaded llama.cpp cannot do it.
        """
        library = context.model.library
        library.profile.require("ggml_pool_2d")
        self.layout = RowLayout(context.n_vocab)
        self.attached: set[int] = set()
        self._context, self._ffi, self._lib = context, library.ffi, library.lib
        _check_views(self._ffi, self._lib)
        self._chains: dict[int, _Chain] = {}
        self._handle = self._ffi.new_handle(self)
        # of the graph that was built last: the tensor of all rows, the table, how many rows have outputs
        self._rows: Any = None
        self._table: Any = None
        self._n_rows = 0

    def attach(self, seq_id: int) -> None:
        """Reduce the rows of a sequence from the next decode on (llama_set_sampler). The graph is planned anew."""
        if seq_id in self.attached:
            return
        context = self._context
        chain = _Chain(context.model, self._handle)
        with context.exclusive(), listen() as heard:
            made = self._lib.llama_set_sampler(context.pointer, seq_id, chain.pointer)
        if not made:
            raise UnsupportedByBundle(f"the compute graph takes no sampler{heard.why()}")
        self._replace(seq_id, chain)
        self.attached.add(seq_id)

    def detach(self, seq_id: int) -> None:
        """Give whole rows again from the next decode on."""
        if seq_id in self.attached:
            self._context.detach_sampler(seq_id)
            self.attached.remove(seq_id)

    def _replace(self, seq_id: int, chain: _Chain) -> None:
        former = self._chains.pop(seq_id, None)
        self._chains[seq_id] = chain
        if former is not None:
            former.close()

    def rows(self, row: int, place: int, n_outputs: int) -> Floats:
        """All rows of the last decode, waiting for it; those of attached sequences hold a reduced row.

        For a caller that holds the context's `exclusive()` (llama_get_sampled_logits_ith).

        Args:
            row: a batch row of an attached sequence.
            place: where it stands among the outputs.

        Returns:
            float32 (n_outputs, n_vocab), libllama's own memory.
        """
        found = self._lib.llama_get_sampled_logits_ith(self._context.pointer, row)
        if not found:
            raise UnsupportedByBundle("the compute graph did not reduce a row of logits")
        n_vocab = self.layout.n_vocab
        data = self._ffi.buffer(found - place * n_vocab, 4 * n_outputs * n_vocab)
        whole: Floats = np.frombuffer(data, np.float32).reshape(n_outputs, n_vocab)
        return whole

    def whole_row(self, place: int, n_outputs: int) -> Floats | None:
        """A whole row of the last decode, read from the device; None where its graph is not the last that was computed.

        For a caller that holds the context's `exclusive()`, after a batch of one token of each sequence.
        """
        if self._rows is None or n_outputs != self._n_rows:
            return None
        row: Floats = np.empty(self.layout.n_vocab, np.float32)
        self._lib.ggml_backend_tensor_get(self._rows, self._ffi.from_buffer(row), place * row.nbytes, row.nbytes)
        return row

    # --- while a graph is built ---

    def reset(self) -> None:
        """A graph is about to be built."""
        self._table = None

    def apply(self, ctx: Any, data: Any) -> None:
        """Replace the row in `data` by its reduced row."""
        layout, name = self.layout, self._ffi.cast("char *", self._lib.ggml_get_name(data.logits))
        rows = self._ffi.cast("struct ggml_tensor **", name + _VIEW_SRC)[0]
        if not rows or self._lib.ggml_nelements(data.logits) != layout.n_vocab:
            return  # a trial of the chain alone
        if self._table is None or rows != self._rows:
            self._table, self._rows = reduced(self._lib, ctx, rows, layout), rows
            self._lib.ggml_set_output(rows)  # `whole_row` reads it
            self._lib.ggml_set_output(self._table)
            self._n_rows = self._lib.ggml_nelements(rows) // layout.n_vocab - 1  # the last belongs to nobody
        place = self._ffi.cast("size_t *", name + _VIEW_OFFS)[0] // (4 * layout.n_vocab)
        data.logits = self._lib.ggml_view_1d(ctx, self._table, layout.width, 4 * place * layout.width)

    def close(self) -> None:
        """Free the chains, once nothing is computed with them any more."""
        for seq_id in list(self.attached):
            if self._context.usable:
                self.detach(seq_id)
        self.attached.clear()
        for chain in self._chains.values():
            chain.close()
        self._chains.clear()


class _Chain(Handle):
    """A chain with our sampler, to be attached once."""

    def __init__(self, model: Model, handle: Any) -> None:
        lib = model.library.lib
        params = lib.llama_sampler_chain_default_params()
        with model.shared():
            model.pointer  # noqa: B018 - raises when the model is closed
            self._own(lib.llama_sampler_chain_init(params), lib.llama_sampler_free, model)
        with self.exclusive():
            sampler = lib.llama_sampler_init(_interface(model.library.ffi)[0], handle)
            lib.llama_sampler_chain_add(self.pointer, sampler)


@cache
def _interface(ffi: Any) -> tuple[Any, ...]:
    """struct llama_sampler_i, and what it points to; never freed.

    An exception in a callback is raised when the call of libllama is over (native/log.py); the row stays whole then.
    """
    called = ffi.new("char[]", b"reduce-rows")

    def name(_sampler: Any) -> Any:
        return called

    def nothing(_sampler: Any, _candidates: Any) -> None:
        pass

    def init(_sampler: Any, _buft: Any, _n: int) -> bool:
        return True

    def apply(sampler: Any, ctx: Any, _graph: Any, data: Any) -> None:
        ffi.from_handle(sampler.ctx).apply(ctx, data)

    def reset(sampler: Any) -> None:
        ffi.from_handle(sampler.ctx).reset()

    interface = ffi.new("struct llama_sampler_i *")
    fields = {item[0]: item[1].type for item in ffi.typeof("struct llama_sampler_i").fields}
    callbacks = {"name": name, "apply": nothing, "backend_init": init, "backend_apply": apply, "backend_reset": reset}
    made = {key: ffi.callback(fields[key], function, onerror=keep) for key, function in callbacks.items()}
    for key, callback in made.items():
        setattr(interface, key, callback)
    return interface, called, made


@cache
def _check_views(ffi: Any, lib: Any) -> None:
    """Whether a view says where we look what it is a view of.

    Raises:
        UnsupportedByBundle: it does not.
    """
    ctx = lib.ggml_init(ffi.new("struct ggml_init_params *", (1 << 16, ffi.NULL, True))[0])
    try:
        whole = lib.ggml_new_tensor_2d(ctx, lib.GGML_TYPE_F32, 24, 5)
        name = ffi.cast("char *", lib.ggml_get_name(lib.ggml_view_1d(ctx, whole, 24, 288)))
        source = ffi.cast("struct ggml_tensor **", name + _VIEW_SRC)[0]
        offset = ffi.cast("size_t *", name + _VIEW_OFFS)[0]
        plain = ffi.cast("char *", lib.ggml_get_name(whole))
        if source != whole or offset != 288 or ffi.cast("struct ggml_tensor **", plain + _VIEW_SRC)[0]:
            raise UnsupportedByBundle("this llama.cpp lays out its tensors in another way: no reduction of rows")
    finally:
        lib.ggml_free(ctx)
