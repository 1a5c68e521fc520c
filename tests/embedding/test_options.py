"""What `encode` takes: names of prompts, precisions, tensors, any iterable, sentence-transformers' names."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from llcuda_ffi import Embedder
from llcuda_ffi.compat.sentence_transformers.util import cos_sim
from llcuda_ffi.embedding.precision import quantize_embeddings
from llcuda_ffi.errors import InvalidRequest, MissingExtra, UnknownSetting
from llcuda_ffi.hub import registry

from ..support.tiny_model import make_tiny_bert

TEXTS = ["the cat sat", "a dog ran", "the sea is wide", "one two three"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """A tiny BERT with a prompt for queries."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    make_tiny_bert(path, {"llcuda_ffi.prompt.query": "the query: "})
    with Embedder(path, n_contexts=1) as embedder:
        yield embedder


def test_prompts_by_name_and_by_text(tiny: Embedder) -> None:
    """A name is looked up, a text is a text; a name that the model lacks is refused with those it has."""
    by_text = tiny.encode(TEXTS, prompt="the query: ")
    assert np.array_equal(tiny.encode(TEXTS, prompt_name="query"), by_text)
    assert np.array_equal(tiny.encode_query(TEXTS), by_text)
    assert np.array_equal(tiny.encode_document(TEXTS), tiny.encode(TEXTS))  # it has none for documents
    assert not np.array_equal(tiny.encode(TEXTS, prompt="query"), by_text)
    with pytest.raises(InvalidRequest, match="no prompt 'qurey'; it has 'query'"):
        tiny.encode(TEXTS, prompt_name="qurey")
    with pytest.raises(InvalidRequest, match="one of them"):
        tiny.encode(TEXTS, prompt_name="query", prompt="the query: ")
    with Embedder(tiny.model, prompts={"document": "a "}, n_contexts=1) as own:
        assert np.array_equal(own.encode_document(TEXTS), tiny.encode(TEXTS, prompt="a "))


def test_the_registry_knows_prompts() -> None:
    """Of a registered model's file, in any quantization; of no other file."""
    assert registry.prompts_of("nomic-embed-text-v1.5.Q4_K_M.gguf")["query"] == "search_query: "
    assert registry.prompts_of("Qwen3-Embedding-0.6B-f16.gguf")["query"].endswith("\nQuery:")
    assert registry.prompts_of("e5-small-v2-f16.gguf") == {"query": "query: ", "document": "passage: "}
    assert registry.prompts_of("all-MiniLM-L6-v2-f16.gguf") == registry.prompts_of("model.gguf") == {}
    assert registry.get("BAAI/bge-small-en-v1.5").name == "bge-small-en-v1.5"


def test_names_of_sentence_transformers(tiny: Embedder) -> None:
    """Their names do what ours do; an unknown one names the nearest."""
    theirs = tiny.encode(
        TEXTS, batch_size=2, show_progress_bar=False, normalize_embeddings=False, truncate_dim=8, prompt="a "
    )
    assert np.array_equal(theirs, tiny.encode(TEXTS, normalize=False, dim=8, prompt="a "))
    with pytest.raises(InvalidRequest, match="the same"):
        tiny.encode(TEXTS, dim=8, truncate_dim=8)
    with pytest.raises(UnknownSetting, match="did you mean normalize"):
        tiny.encode(TEXTS, normalise=True)  # type: ignore[call-overload]


def test_precisions(tiny: Embedder) -> None:
    """Bits are the signs, bytes are the steps of each number's range; both can be undone to within a step."""
    vectors = tiny.encode(TEXTS)
    bits = tiny.encode(TEXTS, precision="ubinary")
    assert bits.dtype == np.uint8
    assert np.array_equal(np.unpackbits(bits, axis=1).astype(bool), vectors > 0)
    signed = tiny.encode(TEXTS, precision="binary")
    assert signed.dtype == np.int8
    assert np.array_equal(signed.astype(int) + 128, bits)
    low, high = vectors.min(0), vectors.max(0)
    step = (high - low) / 255
    for precision, shift in (("uint8", 0), ("int8", 128)):
        found = tiny.encode(TEXTS, precision=precision)
        assert found.dtype == np.dtype(precision)
        assert (np.abs((found.astype(float) + shift) * step + low - vectors) <= step * 1.01 + 1e-7).all()
    int8, uint8 = (tiny.encode(TEXTS, precision=precision).astype(int) for precision in ("int8", "uint8"))
    assert np.array_equal(int8 + 128, uint8)
    assert tiny.encode(TEXTS[0], precision="binary").shape == (4,)
    with pytest.raises(InvalidRequest, match="more texts"):
        tiny.encode(TEXTS[0], precision="int8")
    one = quantize_embeddings(vectors[:1], "int8", calibration_embeddings=vectors)
    assert np.array_equal(one, tiny.encode(TEXTS, precision="int8")[:1])
    with pytest.raises(InvalidRequest, match="precision must be"):
        tiny.encode(TEXTS, precision="int4")  # type: ignore[call-overload]
    with pytest.raises(InvalidRequest, match="multiple of 8"):
        tiny.encode(TEXTS, precision="binary", dim=12)


def test_equal_texts_are_computed_once(tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its vector, in its place; the queue sees the different ones."""
    expected = tiny.encode(TEXTS)
    queue = tiny._queue(tiny._pooling)
    counts: list[int] = []
    compute = queue.compute
    monkeypatch.setattr(queue, "compute", lambda texts, *rest: counts.append(len(texts)) or compute(texts, *rest))
    found = tiny.encode([TEXTS[1], TEXTS[0], TEXTS[1], TEXTS[1]])
    assert counts == [2]
    assert np.allclose(found, expected[[1, 0, 1, 1]], atol=1e-5)
    assert [rows.shape for rows in tiny.encode_tokens([TEXTS[0]] * 2)] == [tiny.encode_tokens(TEXTS[0]).shape] * 2


@pytest.mark.parametrize(
    "kind", [tuple, iter, np.array, lambda t: dict.fromkeys(t).keys()], ids=["tuple", "iter", "array", "keys"]
)
def test_any_iterable(tiny: Embedder, kind: object) -> None:
    """Arrays, generators and views give what the list gives."""
    assert np.array_equal(tiny.encode(kind(TEXTS)), tiny.encode(TEXTS))  # type: ignore[operator]


def test_similarity(tiny: Embedder) -> None:
    """Cosines of all pairs, of vectors of any length."""
    a, b = tiny.encode(TEXTS, normalize=False), tiny.encode(TEXTS[:2])
    found = tiny.similarity(a, b)
    assert found.shape == (4, 2)
    assert np.allclose(np.diag(found[:2]), 1, atol=1e-5)
    assert np.allclose(tiny.similarity(b[0], b), found[:1], atol=1e-5)
    column = np.empty(len(a), object)  # as a Series of vectors is
    column[:] = list(a)
    assert np.array_equal(tiny.similarity(column, b), found)
    assert np.array_equal(cos_sim(column, b), found)


def test_what_is_no_text_is_shown(tiny: Embedder) -> None:
    """A missing value of a column is told from other numbers, and bytes from a text."""
    with pytest.raises(InvalidRequest, match=r"text 1 must be a str, not float \(nan\)"):
        tiny.encode(["a", float("nan")])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="bytes: decode them"):
        tiny.encode(b"a")  # type: ignore[arg-type]


def test_tensor_without_torch(tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is not installed the error says so, and is an ImportError."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="pip install torch") as caught:
        tiny.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(caught.value, ImportError)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")  # warnings of other packages are theirs
def test_precisions_are_those_of_sentence_transformers() -> None:
    """Bit for bit, of the same vectors."""
    theirs = pytest.importorskip("sentence_transformers.util.quantization").quantize_embeddings
    vectors = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    for precision in ("int8", "uint8", "binary", "ubinary"):
        assert np.array_equal(quantize_embeddings(vectors, precision), theirs(vectors, precision=precision))
