"""Rows that the compute graph reduces: what is left of them, and that it decides the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Batch, Context, Model, SamplerChain
from llcuda_ffi.core.candidates import Candidates
from llcuda_ffi.core.row_reduction import RowLayout, RowReduction, reduced
from llcuda_ffi.engine.sampling.reduced_rows import find_candidates
from llcuda_ffi.native.load import load

from ..support.tiny_model import make_tiny_llama

N_ROWS = 3
ONE: dict[str, Any] = {"n_ctx": 64, "n_seq_max": N_ROWS, "n_threads": 1}
TOP_K = 40

Fill = Callable[[np.random.Generator, np.ndarray], None]


def _normal(rng: np.random.Generator, rows: np.ndarray) -> None:
    rows[:] = rng.normal(size=rows.shape)


def _at_the_end(rng: np.random.Generator, rows: np.ndarray) -> None:
    """The highest lie side by side at the end."""
    _normal(rng, rows)
    rows[:, -60:] += 20


def _few(rng: np.random.Generator, rows: np.ndarray) -> None:
    """Fewer tokens are possible than top-k asks for."""
    rows[:] = -np.inf
    rows[:, rng.integers(0, rows.shape[1], 5)] = rng.normal(size=5)


def _steps(rng: np.random.Generator, rows: np.ndarray) -> None:
    """Many equal logits, also at the bound."""
    rows[:] = np.round(rng.normal(size=rows.shape), 1)


def _a_tie(rng: np.random.Generator, rows: np.ndarray) -> None:
    """The highest logit stands twice."""
    _normal(rng, rows)
    rows[:, [3, 20_000]] = 9


def _one_nan(rng: np.random.Generator, rows: np.ndarray) -> None:
    """A logit that no top-k would look at is no number."""
    _normal(rng, rows)
    rows[1:, 5] = np.nan


def _all_nan(rng: np.random.Generator, rows: np.ndarray) -> None:
    rows[:] = np.nan


def _nothing(rng: np.random.Generator, rows: np.ndarray) -> None:
    rows[:] = -np.inf


FILLS: list[Fill] = [_normal, _at_the_end, _few, _steps, _a_tie, _one_nan, _all_nan, _nothing]
CERTAIN = {_normal, _at_the_end, _few}


def compute(rows: np.ndarray, layout: RowLayout) -> np.ndarray:
    """Reduce rows in a graph on the CPU backend."""
    library = load()
    ffi, lib = library.ffi, library.lib
    device = lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)
    backend = lib.ggml_backend_dev_init(device, ffi.NULL)
    set_threads = lib.ggml_backend_reg_get_proc_address(
        lib.ggml_backend_dev_backend_reg(device), b"ggml_backend_set_n_threads"
    )
    ffi.cast("void (*)(ggml_backend_t, int)", set_threads)(backend, 1)
    ctx = lib.ggml_init(ffi.new("struct ggml_init_params *", (1 << 20, ffi.NULL, True))[0])
    try:
        source = lib.ggml_new_tensor_2d(ctx, lib.GGML_TYPE_F32, rows.shape[1], rows.shape[0])
        table = reduced(lib, ctx, source, layout)
        graph = lib.ggml_new_graph(ctx)
        lib.ggml_build_forward_expand(graph, table)
        buffer = lib.ggml_backend_alloc_ctx_tensors(ctx, backend)
        lib.ggml_backend_tensor_set(source, ffi.from_buffer(rows), 0, rows.nbytes)
        assert lib.ggml_backend_graph_compute(backend, graph) == 0
        found = np.empty((len(rows), layout.width), np.float32)
        lib.ggml_backend_tensor_get(table, ffi.from_buffer(found), 0, found.nbytes)
        lib.ggml_backend_buffer_free(buffer)
        return found
    finally:
        lib.ggml_free(ctx)
        lib.ggml_backend_free(backend)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A tiny model with a vocabulary that blocks do not divide."""
    path = tmp_path_factory.mktemp("reduction") / "wide.gguf"
    make_tiny_llama(path, n_vocab=40_001)
    with Model.load(path) as made:
        if not made.library.profile.has("ggml_pool_2d"):
            pytest.skip(f"profile {made.library.profile.name} cannot reduce rows")
        yield made


@pytest.mark.parametrize("n_vocab", [32_000, 50_257, 262_144])
def test_as_from_the_whole_row(model: Model, n_vocab: int) -> None:
    """A reduced row holds the best blocks, and a chain chooses from it what it chooses from the row, or it says so."""
    layout = RowLayout(n_vocab)
    assert layout.pays
    rng = np.random.default_rng(n_vocab)
    rows = np.empty((N_ROWS, n_vocab), np.float32)
    candidates = Candidates(model.library, n_vocab)
    for fill in FILLS:
        fill(rng, rows)
        table = compute(rows, layout)
        numbers = layout.numbers(table)
        whole = rows[:, : layout.n_blocks * layout.block].reshape(N_ROWS, layout.n_blocks, layout.block)
        assert np.array_equal(layout.blocks(table), whole[np.arange(N_ROWS)[:, None], numbers], equal_nan=True)
        assert np.array_equal(layout.last(table), rows[:, n_vocab - layout.rest :], equal_nan=True)
        for k in (1, TOP_K):
            found = find_candidates(layout, table, np.full(N_ROWS, k))
            assert found.sound.all() or fill not in CERTAIN
            assert not found.sound[np.isnan(rows).any(axis=1)].any()
            start = 0
            for row, size in enumerate(found.sizes.tolist()):
                ids, logits = found.ids[start : start + size], found.logits[start : start + size]
                start += size
                if not found.sound[row]:
                    continue
                order = np.argsort(-rows[row], kind="stable")[:k]
                finite = order[rows[row, order] > -np.inf]
                assert set(finite.tolist()) <= set(ids.tolist())
                assert np.array_equal(rows[row, ids], logits)
                assert (np.diff(ids) > 0).all()
                best = np.sort(logits)
                assert found.ties[row] == bool((best[1:] == best[:-1]).any())
                if found.ties[row] or not size:
                    continue
                chosen = []
                for tokens, values in ((ids, logits), (np.arange(n_vocab), rows[row])):
                    candidates.rows["id"][: len(tokens)], candidates.rows["logit"][: len(tokens)] = tokens, values
                    with SamplerChain(model).top_k(min(k, len(finite))).temperature(1.5).dist(row) as chain:
                        chosen.append(candidates.choose(chain, 0, len(tokens)))
                assert chosen[0] == chosen[1] >= 0


def test_in_a_context(model: Model) -> None:
    """What a decode leaves of the rows of some sequences is of the logits that it would give; other rows are whole."""
    with Context(model, **ONE) as context, Context(model, **ONE) as plain:
        reduction = RowReduction(context)
        layout = reduction.layout
        for step, attached in enumerate(((0, 1, 2), (0, 1, 2), (1,), (0, 2))):
            for seq in range(N_ROWS):
                (reduction.attach if seq in attached else reduction.detach)(seq)
            assert reduction.attached == set(attached)
            batch = Batch(N_ROWS)
            order = range(N_ROWS) if step != 1 else (2, 0, 1)
            for seq in order:
                batch.add(7 * seq + step, step, seq, output=True)
            context.decode(batch)
            plain.decode(batch)
            for row, seq in enumerate(order):
                expected = plain.logits(row)
                if seq not in attached:
                    assert np.array_equal(context.logits(row), expected)
                    continue
                with context.exclusive():
                    found = reduction.rows(row, row, N_ROWS)[row : row + 1]
                    whole = reduction.whole_row(row, N_ROWS)
                numbers = layout.numbers(found)[0]
                each = expected[: layout.n_blocks * layout.block].reshape(layout.n_blocks, layout.block)
                assert np.array_equal(layout.blocks(found)[0], each[numbers])
                assert np.array_equal(layout.last(found)[0], expected[len(expected) - layout.rest :])
                if step == 0:
                    assert whole is not None
                assert whole is None or not layout.is_of(found, whole) or np.array_equal(whole, expected)
        reduction.close()


def test_an_exception_while_a_graph_is_built(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a callback raises is raised by the decode, the row stays whole, and the context can be used."""

    def fail(*_arguments: Any) -> None:
        raise ZeroDivisionError("while the graph is built")

    with Context(model, **ONE) as context:
        reduction = RowReduction(context)
        reduction.attach(0)
        batch = Batch(1)
        batch.add(1, 0, output=True)
        with monkeypatch.context() as patched:
            patched.setattr("llcuda_ffi.core.row_reduction.reduced", fail)
            with pytest.raises(ZeroDivisionError):
                context.decode(batch)
        reduction.detach(0)
        batch.clear()
        batch.add(2, 1, output=True)
        context.decode(batch)
        assert context.logits().shape == (model.vocab.n_tokens,)
        reduction.close()


def test_layout() -> None:
    """The layout keeps sorting in one kernel, and leaves small vocabularies alone."""
    for n_vocab in (1_000, 32_000, 70_001, 128_256, 262_144, 1_000_000):
        layout = RowLayout(n_vocab)
        assert layout.n_blocks <= 1024
        assert layout.n_blocks * layout.block + layout.rest == n_vocab
        assert layout.pays == (n_vocab > 8_000)
