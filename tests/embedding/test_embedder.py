"""Embedder on the real MiniLM, against reference vectors of sentence-transformers."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llcuda_ffi import Embedder, Reranker
from llcuda_ffi.embedding.packing import PackingQueue, open_contexts
from llcuda_ffi.embedding.waiting import Job, Waiting
from llcuda_ffi.errors import ClosedError, ContextOverflow, InvalidRequest, UnsupportedModel
from llcuda_ffi.quantization.files import quantize

from ..support.embedding_texts import REFERENCE, TEXTS

LIMIT = 256


@pytest.fixture(scope="module")
def vectors(embedder: Embedder) -> np.ndarray:
    """All texts, encoded together."""
    return embedder.encode(TEXTS)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


def test_as_sentence_transformers(vectors: np.ndarray) -> None:
    """Every text has the vector that sentence-transformers gives: cosine 0.9999 or more in F16."""
    with np.load(REFERENCE) as reference:
        cosines = _cosines(vectors, reference["vectors"].astype(np.float32))
    assert cosines.min() >= 0.9999, {t: c for t, c in zip(TEXTS, cosines, strict=True) if c < 0.9999}


def test_q8_0_is_near(minilm: Path, tmp_path: Path) -> None:
    """Quantized to Q8_0 the cosine is 0.998 or more for every text."""
    small = quantize(minilm, tmp_path / "q8_0.gguf", "Q8_0").path
    with Embedder(small) as embedder, np.load(REFERENCE) as reference:
        cosines = _cosines(embedder.encode(TEXTS), reference["vectors"].astype(np.float32))
    assert cosines.min() >= 0.998


def test_tokens_are_the_tokenizer_s(embedder: Embedder) -> None:
    """Each text has as many tokens as in the model's own tokenizer."""
    with np.load(REFERENCE) as reference:
        assert [len(embedder.tokenize(text)) for text in TEXTS] == reference["tokens"].tolist()


def test_neighbours_do_not_matter(embedder: Embedder, vectors: np.ndarray) -> None:
    """A text alone, with all others, in small packs and in reverse order: the same vector, each at its place."""
    alone = np.stack([embedder.encode(text) for text in TEXTS])
    assert np.abs(alone - vectors).max() < 2e-3
    assert np.abs(embedder.encode(TEXTS[::-1])[::-1] - vectors).max() < 2e-3
    assert np.abs(embedder.encode(TEXTS, batch_tokens=16) - vectors).max() < 2e-3
    assert _cosines(alone, vectors).min() > 0.99999


def test_shapes(embedder: Embedder) -> None:
    """str → (dim,), list → (n, dim), nothing → (0, dim); the dtype asked for; length 1 or as it came."""
    assert embedder.encode("one").shape == (384,)
    assert embedder.encode(["one"]).shape == (1, 384)
    assert embedder.encode([]).shape == (0, 384)
    assert embedder.encode("one", dtype=np.float16).dtype == np.float16
    raw = embedder.encode("one", normalize=False)
    assert abs(np.linalg.norm(raw) - 1) > 0.1
    assert np.allclose(raw / np.linalg.norm(raw), embedder.encode("one"), atol=1e-6)


def test_matryoshka(embedder: Embedder) -> None:
    """`dim` keeps the first numbers, at length 1 again."""
    full, part = embedder.encode("one"), embedder.encode("one", dim=64)
    assert part.shape == (64,)
    assert np.allclose(part, full[:64] / np.linalg.norm(full[:64]), atol=1e-6)
    for wrong in (0, 385, 1.5):
        with pytest.raises(InvalidRequest, match="dim"):
            embedder.encode("one", dim=wrong)  # type: ignore[arg-type]


def test_limit(embedder: Embedder) -> None:
    """256 tokens pass, 257 raise naming the text, or are cut before the end mark."""
    exact = " ".join(["river"] * (LIMIT - 2))
    over = exact + " river"
    assert len(embedder.tokenize(exact)) == embedder.max_tokens == LIMIT
    with pytest.raises(ContextOverflow, match="text 1 has 257 tokens"):
        embedder.encode(["short", over])
    assert np.allclose(embedder.encode(over, truncate=True), embedder.encode(exact), atol=2e-3)


def test_prompt(embedder: Embedder) -> None:
    """A prompt is put before the text."""
    assert np.allclose(embedder.encode("b", prompt="a "), embedder.encode("a b"), atol=2e-3)


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (["a", 3], {}),
        (5, {}),
        ("a", {"dtype": np.int32}),
        ("a", {"batch_tokens": 0}),
        ("a", {"prompt": 3}),
        ("a", {"truncate": "yes"}),
    ],
)
def test_bad_arguments(embedder: Embedder, texts: object, options: dict[str, object]) -> None:
    """What is not a text or out of range raises InvalidRequest."""
    with pytest.raises(InvalidRequest):
        embedder.encode(texts, **options)  # type: ignore[arg-type]


def test_many_threads(embedder: Embedder, vectors: np.ndarray) -> None:
    """Eight threads share the queue: each gets its own texts' vectors."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: embedder.encode(TEXTS[i : i + 5]), range(len(TEXTS) - 5)))
    for i, rows in enumerate(found):
        assert np.abs(rows - vectors[i : i + 5]).max() < 2e-3


def test_one_bad_text_leaves_others_alone(embedder: Embedder, vectors: np.ndarray) -> None:
    """While one thread's call fails, another's is answered."""
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(embedder.encode, ["river " * 400])
        good = pool.submit(embedder.encode, TEXTS[:8])
        assert np.abs(good.result() - vectors[:8]).max() < 2e-3
        with pytest.raises(ContextOverflow):
            bad.result()


def test_async(embedder: Embedder, vectors: np.ndarray) -> None:
    """aencode gives what encode gives, several at a time."""

    async def main() -> list[np.ndarray]:
        return await asyncio.gather(*(embedder.aencode(text) for text in TEXTS[:6]))

    assert np.abs(np.stack(asyncio.run(main())) - vectors[:6]).max() < 2e-3


def test_token_embeddings_and_pooling(minilm: Path, embedder: Embedder) -> None:
    """Token vectors come one for each token; their mean, first and last are what the poolings give."""
    text = TEXTS[4]
    tokens = embedder.encode_tokens([text, "a"])
    assert [len(rows) for rows in tokens] == [len(embedder.tokenize(text)), 3]
    rows = tokens[0]
    for pooling, expected in (("mean", rows.mean(axis=0)), ("cls", rows[0]), ("last", rows[-1])):
        with Embedder(minilm, pooling=pooling, n_contexts=1) as other:
            assert np.allclose(other.encode(text, normalize=False), expected, atol=5e-3)
    with Embedder(minilm, pooling="none", n_contexts=1) as other, pytest.raises(InvalidRequest, match="encode_tokens"):
        other.encode(text)


def test_closed(minilm: Path) -> None:
    """After close every call raises; closing again is nothing."""
    embedder = Embedder(minilm, n_contexts=1)
    embedder.close()
    embedder.close()
    with pytest.raises(ClosedError):
        embedder.encode("a")


def test_close_ends_calls_that_wait(minilm: Path) -> None:
    """A call with many texts that another thread's close interrupts ends with ClosedError; nothing hangs."""
    embedder = Embedder(minilm, n_contexts=1)
    started, ends = threading.Event(), []

    def work() -> None:
        started.set()
        try:
            embedder.encode(TEXTS * 40)
        except ClosedError as error:
            ends.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    embedder.close()
    thread.join(60)
    assert not thread.is_alive()
    assert ends


def test_failure_in_a_pack_reaches_its_caller(embedder: Embedder) -> None:
    """What goes wrong while computing raises in the call that asked, and the queue goes on."""
    queue = PackingQueue(
        open_contexts(embedder.model, 1, n_ctx=64, n_batch=64, n_ubatch=64, n_seq_max=4, embeddings=True)
    )
    with pytest.raises(InvalidRequest, match="room for 64"):
        queue.compute([np.ones(65, np.int32)], 64)
    assert len(queue.compute([np.ones(3, np.int32)] * 9, 64)) == 9
    queue.close()


def test_embedder_is_no_reranker(minilm: Path) -> None:
    """A model without a classification head is refused by Reranker."""
    with pytest.raises(UnsupportedModel, match="classification head"):
        Reranker(minilm)


@pytest.mark.parametrize("batch_tokens", [1, 48, 96, 192])
def test_any_pack_size(minilm: Path, batch_tokens: int) -> None:
    """Pack sizes that do not divide a context's rows give the same vectors: libllama aborts if its rows are uneven."""
    texts = ["a b c d " * n for n in (1, 20, 40)]
    with Embedder(minilm, n_contexts=1) as usual, Embedder(usual.model, batch_tokens=batch_tokens) as other:
        assert np.abs(usual.encode(texts) - other.encode(texts)).max() < 3e-3


@settings(deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=40), min_size=1, max_size=4),
    limit=st.integers(1, 256),
    most=st.integers(1, 8),
)
def test_every_text_is_in_one_pack(lengths: list[list[int]], limit: int, most: int) -> None:
    """Whatever waits, each text is taken once; no pack exceeds the context or, unless a text does alone, the limit."""
    waiting = Waiting()
    jobs = [Job([np.zeros(n, np.int32) for n in part], limit, None) for part in lengths]
    for job in jobs:
        waiting.add(job)
    taken: list[tuple[int, int]] = []
    while waiting:
        pack = waiting.take(320, most)
        sizes = [len(job.texts[i]) for job, i in pack]
        assert 1 <= len(pack) <= most
        assert sum(sizes) <= max(limit, 64 * -(-sizes[0] // 64))
        taken += [(jobs.index(job), i) for job, i in pack]
    assert sorted(taken) == [(j, i) for j, part in enumerate(lengths) for i in range(len(part))]
