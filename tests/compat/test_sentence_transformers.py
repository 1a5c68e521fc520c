"""Everyday code of sentence-transformers' users: only the import line differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llcuda_ffi.errors import InvalidRequest, UnknownSetting

from ..support.tiny_model import make_tiny_bert
from .snippets import Snippet, snippet_id

HEAD = "from llcuda_ffi.compat.sentence_transformers import SentenceTransformer, CrossEncoder, util\n"
LOAD = HEAD + "model = SentenceTransformer('bert.gguf')\n"
TEXTS = "texts = ['the cat sat', 'a dog ran', 'the sea is wide']\n"

SNIPPETS = [
    Snippet(
        "README",
        LOAD
        + """
sentences = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
]
embeddings = model.encode(sentences)
similarities = model.similarity(embeddings, embeddings)
""",
        "embeddings.shape == (3, 32) and similarities.shape == (3, 3) and abs(similarities[0, 0] - 1) < 1e-5",
    ),
    Snippet("one text", LOAD + "v = model.encode('the cat')", "v.shape == (32,)"),
    Snippet(
        "batch_size", LOAD + TEXTS + "v = model.encode(texts, batch_size=64, show_progress_bar=True)", "len(v) == 3"
    ),
    Snippet(
        "normalize_embeddings",
        LOAD + TEXTS + "v = model.encode(texts, normalize_embeddings=True)",
        "abs((v * v).sum(1) - 1).max() < 1e-5",
    ),
    Snippet(
        "convert_to_numpy=False",
        LOAD + TEXTS + "v = model.encode(texts, convert_to_numpy=False)",
        "isinstance(v, list)",
    ),
    Snippet("cos_sim", LOAD + TEXTS + "v = model.encode(texts)\ns = util.cos_sim(v[0], v[1:])", "s.shape == (1, 2)"),
    Snippet(
        "prompt_name",
        LOAD + "v = model.encode('cat', prompt_name='query')",
        "(v == model.encode('cat', prompt='the query: ')).all()",
    ),
    Snippet("unknown prompt", LOAD + "model.encode('cat', prompt_name='qurey')", error="no prompt 'qurey'"),
    Snippet(
        "encode_query",
        LOAD
        + TEXTS
        + "q = model.encode_query('which cat')\nd = model.encode_document(texts)\ns = model.similarity(q, d)",
        "s.shape == (1, 3)",
    ),
    Snippet(
        "truncate_dim",
        HEAD + TEXTS + "model = SentenceTransformer('bert.gguf', truncate_dim=16)\nv = model.encode(texts)",
        "v.shape == (3, 16) and model.get_sentence_embedding_dimension() == 16",
    ),
    Snippet("truncate_dim of a call", LOAD + TEXTS + "v = model.encode(texts, truncate_dim=8)", "v.shape == (3, 8)"),
    Snippet("dimension", LOAD + "n = model.get_sentence_embedding_dimension()", "n == 32"),
    Snippet(
        "token_embeddings",
        LOAD + TEXTS + "v = model.encode(texts, output_value='token_embeddings')",
        "v[0].shape[1] == 32 and len(v) == 3",
    ),
    Snippet(
        "precision",
        LOAD + TEXTS + "v = model.encode(texts, precision='int8')\nb = model.encode(texts, precision='ubinary')",
        "str(v.dtype) == 'int8' and b.shape == (3, 4)",
    ),
    Snippet(
        "quantize",
        LOAD
        + TEXTS
        + "from llcuda_ffi.compat.sentence_transformers.quantization import quantize_embeddings\nb = quantize_embeddings(model.encode(texts), precision='binary')",
        "str(b.dtype) == 'int8'",
    ),
    Snippet(
        "semantic_search",
        LOAD + TEXTS + "hits = util.semantic_search(model.encode('the cat sat'), model.encode(texts), top_k=2)",
        "hits[0][0]['corpus_id'] == 0 and len(hits[0]) == 2",
    ),
    Snippet(
        "multi process",
        LOAD
        + TEXTS
        + "pool = model.start_multi_process_pool()\nv = model.encode_multi_process(texts, pool)\nmodel.stop_multi_process_pool(pool)",
        "v.shape == (3, 32)",
    ),
    Snippet(
        "max_seq_length",
        LOAD + "before = model.max_seq_length\nmodel.max_seq_length = 16\nv = model.encode('the cat ' * 100)",
        "before > 16 and v.shape == (32,)",
    ),
    Snippet("long texts are cut", LOAD + "v = model.encode('the cat sat on the mat ' * 400)", "v.shape == (32,)"),
    Snippet("tokenize", LOAD + "ids = model.tokenize(['the cat'])['input_ids']", "len(ids[0]) >= 3"),
    Snippet(
        "device and kwargs",
        HEAD
        + "model = SentenceTransformer('bert.gguf', device='cpu', trust_remote_code=True, model_kwargs={'torch_dtype': 'auto'})",
        "model.encode([]).shape == (0, 32)",
    ),
    Snippet(
        "other similarities",
        HEAD
        + "model = SentenceTransformer('bert.gguf', similarity_fn_name='euclidean')\n"
        + TEXTS
        + "v = model.encode(texts)\na = model.similarity(v, v)\nmodel.similarity_fn_name = 'manhattan'\nb = model.similarity_pairwise(v, v[::-1])\npairs = util.paraphrase_mining(model, texts)\ngroups = util.community_detection(v, threshold=-1, min_community_size=3)",
        "abs(a.diagonal()).max() < 1e-3 and b.shape == (3,) and len(pairs) == 3 and len(groups[0]) == 3",
    ),
    Snippet(
        "truncated for a while",
        LOAD
        + "with model.truncate_sentence_embeddings(8):\n    v = model.encode('the cat')\nmodel = model.to('cpu').eval()",
        "v.shape == (8,) and model.encode('a').shape == (32,)",
    ),
    Snippet(
        "paraphrase mining",
        LOAD
        + TEXTS
        + "pairs = util.paraphrase_mining(model, texts, show_progress_bar=False, corpus_chunk_size=10, max_pairs=2, top_k=5)",
        "len(pairs) == 2 and pairs[0][0] >= pairs[1][0] and isinstance(pairs[0][1], int)",
    ),
    Snippet(
        "max_seq_length",
        LOAD
        + "model.max_seq_length = 4\na = model.max_seq_length\nmodel.max_seq_length = 10_000\nb = model.max_seq_length",
        "(a, b) == (4, 128)",
    ),
    Snippet(
        "no such default prompt",
        HEAD + "SentenceTransformer('bert.gguf', default_prompt_name='qurey')",
        error="no prompt 'qurey'",
    ),
    Snippet(
        "arguments by their names",
        LOAD
        + TEXTS
        + """
a, b = model.encode(inputs=texts), model.encode(sentences=texts)
q = model.encode_query(inputs='which cat')
s = model.similarity(embeddings1=a, embeddings2=b)
p = model.similarity_pairwise(embeddings1=a, embeddings2=b)
""",
        "(a == b).all() and s.shape == (3, 3) and p.shape == (3,) and q.shape == (32,)",
    ),
    Snippet("nothing to encode", LOAD + "model.encode()", error="a text or a list of texts"),
    Snippet("multi vectors", "from llcuda_ffi.compat.sentence_transformers import MultiVectorEncoder", error="dense"),
    Snippet(
        "trainers", "from llcuda_ffi.compat.sentence_transformers import CrossEncoderTrainer", error="for training"
    ),
    Snippet("unknown option of encode", LOAD + "model.encode('a', batchsize=2)", error="did you mean batch_size"),
    Snippet("training", "from llcuda_ffi.compat.sentence_transformers import losses", error="for training"),
    Snippet("CrossEncoder", HEAD + "model = CrossEncoder('bert.gguf')", error="no classification head"),
    Snippet(
        "unknown setting", HEAD + "SentenceTransformer('bert.gguf', truncate_dims=3)", error="did you mean truncate_dim"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder with a tiny embedding model."""
    folder = tmp_path_factory.mktemp("compat")
    make_tiny_bert(folder / "bert.gguf", {"llcuda_ffi.prompt.query": "the query: "})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=snippet_id)
def test_snippet(snippet: Snippet, folder: Path) -> None:
    """It runs as written and gives what it should; or the error says what to do."""
    snippet.verify()


def test_names_with_and_without_owner(minilm: Path) -> None:
    """Both are the registry's model."""
    from llcuda_ffi.compat.sentence_transformers import SentenceTransformer

    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        model = SentenceTransformer(name)
        assert model.embedder.model.path == minilm
        model.close()


def test_cross_encoder(tmp_path: Path) -> None:
    """Pairs in any order of queries, one pair, and ranks, are what the Reranker gives."""
    import numpy as np

    from llcuda_ffi.compat.sentence_transformers import CrossEncoder

    from ..support.tiny_model import Typed, tiny_bert

    file = tiny_bert()
    file.metadata["bert.pooling_type"] = Typed("u32", 4)
    file.add("cls.weight", (32, 32), np.random.default_rng(1))
    file.add("cls.bias", (32,), np.random.default_rng(2))
    file.add("cls.output.weight", (32, 1), np.random.default_rng(3))
    file.add("cls.output.bias", (1,), np.random.default_rng(4))
    file.write(tmp_path / "ranker.gguf")
    model = CrossEncoder(tmp_path / "ranker.gguf", max_length=64)
    pairs = [("a cat", "the sea"), ("a dog", "a dog ran"), ("a cat", "the cat sat")]
    scores = model.predict(pairs)
    assert scores.shape == (3,)
    assert np.allclose([model.predict(pair) for pair in pairs], scores, atol=1e-4)
    assert np.allclose(model.predict(pairs, activation_fn=lambda x: x * 2), scores * 2)
    ranked = model.rank("a cat", ["the sea", "the cat sat"], return_documents=True)
    assert {one["corpus_id"]: one["score"] for one in ranked} == pytest.approx({0: scores[0], 1: scores[2]}, abs=1e-4)
    halved = model.rank("a cat", ["the sea", "the cat sat"], 1, activation_fct=lambda x: x / 2, num_workers=2)
    assert [one["score"] for one in halved] == pytest.approx([ranked[0]["score"] / 2], abs=1e-4)
    other = CrossEncoder(tmp_path / "ranker.gguf", activation_fn=lambda x: x + 1)
    ranked = other.rank("a cat", ["the cat sat"])
    assert ranked[0]["score"] == pytest.approx(float(scores[2]) + 1, abs=1e-4)
    other.close()
    assert np.allclose(model.predict(inputs=np.array(pairs), device="cpu"), scores, atol=1e-4)
    assert np.allclose(model.predict(sentences=iter(pairs)), scores, atol=1e-4)
    with pytest.raises(InvalidRequest, match="prompt is the one of its file"):
        model.predict(pairs, prompt="Judge: ")
    with pytest.raises(UnknownSetting, match="did you mean activation_fn"):
        model.predict(pairs, activationfn=None)
    model.close()
