"""Sampling after a top-k prefilter gives what libllama gives from the whole row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Batch, Context, Llama, Model, SamplerChain, SamplingParams
from llcuda_ffi.core.sampler import sample_rows
from llcuda_ffi.engine.sampling import topk_prefilter
from llcuda_ffi.engine.sampling.chain import build_chain
from llcuda_ffi.engine.sampling.row_pool import RowPool
from llcuda_ffi.engine.sampling.topk_prefilter import TopKPrefilter, lowered_by, reach

from ..support.tiny_model import make_tiny_llama

N_VOCAB = 70_001  # not a whole number of columns
N_ROWS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a large vocabulary."""
    made = tmp_path_factory.mktemp("prefilter") / "wide.gguf"
    make_tiny_llama(made, n_vocab=N_VOCAB)
    return made


@pytest.fixture(scope="module")
def context(path: Path) -> Iterator[Context]:
    """A context whose last batch has logits in every row."""
    with Model.load(path) as model, Context(model, n_ctx=256, n_seq_max=N_ROWS) as made:
        batch = Batch(N_ROWS, N_ROWS)
        for i in range(N_ROWS):
            batch.add(i, 0, i, output=True)
        made.decode(batch)
        yield made


def _normal(rng: np.random.Generator, rows: np.ndarray) -> None:
    rows[:] = rng.normal(size=rows.shape)


def _near(rng: np.random.Generator, rows: np.ndarray) -> None:
    """The highest lie side by side, at the end of the vocabulary."""
    _normal(rng, rows)
    rows[:, -60:] += 20


def _one_column(rng: np.random.Generator, rows: np.ndarray) -> None:
    """The highest share a column."""
    _normal(rng, rows)
    rows[:, 17::8192] += 20


def _masked(rng: np.random.Generator, rows: np.ndarray) -> None:
    """Fewer tokens are possible than top-k asks for."""
    rows[:] = -np.inf
    rows[:, rng.integers(0, rows.shape[1], 5)] = rng.normal(size=5)


FILLS: list[Callable[[np.random.Generator, np.ndarray], None]] = [_normal, _near, _one_column, _masked]
CHAINS: list[dict[str, float]] = [
    {"temperature": 0.9},
    {"temperature": 1.5, "top_k": 200, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 0.7, "top_k": 1},
    {"temperature": 1.0, "ignore_eos": True, "xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"temperature": 1.0, "adaptive_p_target": 0.4},
]


@pytest.mark.parametrize("settings", CHAINS, ids=str)
@pytest.mark.parametrize("fill", FILLS, ids=lambda f: f.__name__)
def test_as_libllama(
    context: Context, fill: Callable[[np.random.Generator, np.ndarray], None], settings: dict[str, float]
) -> None:
    """The same tokens as llama_sampler_sample, row after row, draw after draw."""
    if "adaptive_p_target" in settings and not context.model.library.profile.has("llama_sampler_init_adaptive_p"):
        pytest.skip(f"profile {context.model.library.profile.name} has no adaptive-p")
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    ours = [build_chain(context.model, params, i) for i in range(N_ROWS)]
    theirs = [build_chain(context.model, params, i) for i in range(N_ROWS)]
    needed = reach(ours[0].names, params, context.model.vocab)
    assert needed > 0
    logits = context.output_logits(N_ROWS)
    assert logits is not None
    short = TopKPrefilter(context)
    for together in (True, False, True, False):
        fill(rng, logits)
        expected = sample_rows(context, [(chain, row) for row, chain in enumerate(theirs)])
        jobs = [(chain, row, needed) for row, chain in enumerate(ours)]
        if together:
            assert short.sample(logits, jobs) == expected
        else:
            assert [short.sample(logits, [job])[0] for job in jobs] == expected


def test_threads(context: Context) -> None:
    """Rows read in threads, in and out of order and with rows between them left out, give the same tokens."""
    pool = RowPool(context, cores=6)
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, N_VOCAB)).astype(np.float32)
    for rows in (range(40), range(2, 40), [0, 1, 2, 5, 6, 9, 30, 31], [7, 3, 4, 5]):
        for threads in (2, 3, 5):
            found = []
            for run in (topk_prefilter._in_turn, pool._run):
                chains = [SamplerChain(context.model).top_k(40).dist(i) for i in range(len(rows))]
                jobs = [(chain, row, 40) for chain, row in zip(chains, rows, strict=True)]
                found.append(
                    TopKPrefilter(context).sample(logits, jobs, run, 1 if run is topk_prefilter._in_turn else threads)
                )
            assert found[0] == found[1]
            assert min(found[0]) >= 0
    pool.close()


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_no_number_to_choose_by(context: Context, value: float) -> None:
    """A row of -inf or NaN gives -1 and the others their tokens."""
    chain = SamplerChain(context.model).top_k(40).dist(1)
    rows = np.random.default_rng(1).normal(size=(2, N_VOCAB)).astype(np.float32)
    rows[0] = value
    short = TopKPrefilter(context)
    jobs = [(chain, 0, 40), (chain, 1, 40)]
    for found in (short.sample(rows, jobs), [short.sample(rows, [job])[0] for job in jobs]):
        assert found[0] == -1
        assert found[1] >= 0


def test_reach(context: Context) -> None:
    """What a chain needs of a row: k and what a bias lowers; all of it where anything else comes first."""
    vocab = context.model.vocab

    def of(*names: str, **settings: object) -> int:
        return reach(names, SamplingParams(**settings), vocab)  # type: ignore[arg-type]

    assert of("greedy", temperature=0) == 0
    assert of("top_k", "dist", top_k=20) == 20
    assert of("logit_bias", "top_k", "dist", top_k=20, logit_bias={5: -1.0, 6: -2.0}) == 22
    assert of("logit_bias", "top_k", "dist", top_k=20, logit_bias={5: 1.0}) == 0
    assert of("penalties", "top_k", "dist", top_k=20) == 0
    assert of("min_p", "dist", top_k=0) == 0
    assert of("top_k", "dist", top_k=5000) == 0


def test_greedy(context: Context) -> None:
    """A greedy chain takes the highest logit, unless a bias lowers just that one."""
    vocab = context.model.vocab

    def of(*names: str, **biases: object) -> frozenset[int] | None:
        return lowered_by(names, SamplingParams(temperature=0, **biases), vocab)  # type: ignore[arg-type]

    assert of("greedy") == frozenset()
    assert lowered_by(
        ["logit_bias", "greedy"], SamplingParams(temperature=0, logit_bias={3: -1.0}), vocab
    ) == frozenset({3})
    assert of("logit_bias", "greedy", logit_bias={3: 1.0}) is None
    assert of("penalties", "greedy") is None


def test_a_bias_on_the_highest(path: Path) -> None:
    """What greedy would choose is forbidden token after token: it gives the next best, as libllama does."""
    with Llama(path, n_ctx=64, n_parallel=1) as llm:
        banned: dict[int, float] = {}
        for _ in range(5):
            token = llm.generate("text", max_tokens=1, temperature=0, logit_bias=banned, ignore_eos=True).token_ids[0]
            assert token not in banned
            banned[token] = float("-inf")


def test_the_same_generation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole requests of many kinds get the same tokens with prefilters, with threads as well, and without."""
    prompts = [f"text {i}" for i in range(N_ROWS + 1)]
    each = [
        SamplingParams(max_tokens=8, seed=i, prefix_cache=False, logit_bias={i: -5.0}, **CHAINS[i])  # type: ignore[arg-type]
        for i in range(4)
    ]
    each.append(SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, prefix_cache=False))
    each.append(SamplingParams(max_tokens=8, seed=9, prefix_cache=False, logprobs=1))
    each.append(SamplingParams(max_tokens=8, seed=9, prefix_cache=False, grammar="root ::= [a-z ]+"))
    found = []
    with Llama(path, n_ctx=64, n_parallel=N_ROWS) as llm:
        scheduler = llm.engine.schedulers[0]
        for least, cores in ((topk_prefilter._LEAST_VOCAB, 1), (topk_prefilter._LEAST_VOCAB, 6), (10**9, 1)):
            monkeypatch.setattr(topk_prefilter, "_LEAST_VOCAB", least)
            monkeypatch.setattr(topk_prefilter, "_LEAST_SHARE", 2)
            scheduler.selection.rows.close()
            scheduler.selection.rows = RowPool(llm.context, cores=cores)
            found.append([c.token_ids for c in llm.generate(prompts, each)])
    assert found[0] == found[1] == found[2]
