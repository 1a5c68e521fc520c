"""llcuda's own API: the calls of its quick-start script with our import, and each of its promises kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import __version__, llcuda
from llcuda_ffi.bundles import InstalledBundle
from llcuda_ffi.errors import InvalidRequest, ModelNotFound

from ..lora.test_lora import peft_folder
from ..support.tiny_model import make_tiny_bert, make_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llcuda") / "tiny.gguf"
    make_tiny_llama(path)
    return path


def test_names() -> None:
    """Every public name loads; an unknown one says where the list is."""
    for name in llcuda.__all__:
        assert getattr(llcuda, name) is not None
    with pytest.raises(AttributeError, match="migrating"):
        llcuda.NothingLikeIt  # noqa: B018
    with pytest.raises(AttributeError, match=r"llcuda_ffi\.tensor"):
        llcuda.TritonKernel  # noqa: B018
    assert llcuda.__version__ == __version__


def test_quick_start(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The original's quick start: load by name, infer, stream, batch, metrics, unload."""
    engine = llcuda.InferenceEngine()
    assert not engine.is_loaded
    assert engine.load_model("smollm2-135m", gpu_layers=0, ctx_size=512, verbose=True)
    assert engine.is_loaded
    captured = capsys.readouterr()
    assert "n_ctx 512" in captured.err
    assert not captured.out

    result = engine.infer("The capital of France is", max_tokens=16, temperature=0.7)
    assert result.success
    assert str(result) == result.text
    assert result.text
    assert 0 < result.tokens_generated <= 16
    assert result.latency_ms > 0
    assert result.tokens_per_sec > 0

    pieces: list[str] = []
    streamed = engine.infer_stream("Once upon a time", pieces.append, max_tokens=12, temperature=0.0)
    assert len(pieces) > 3
    assert "".join(pieces) == streamed.text
    assert engine.infer("Once upon a time", max_tokens=12, temperature=0.0).text == streamed.text

    prompts = ["One plus one is", "The sky is", "Once upon a time", "My name is"]
    batches = engine.llm.metrics().batches
    results = engine.batch_infer(prompts, max_tokens=12)
    assert [r.success for r in results] == [True] * 4
    assert sum(r.tokens_generated for r in results) > 1.5 * (engine.llm.metrics().batches - batches)

    metrics = engine.get_metrics()
    assert metrics["latency"]["sample_count"] == metrics["throughput"]["total_requests"] == 7
    assert metrics["latency"]["min_ms"] <= metrics["latency"]["p50_ms"] <= metrics["latency"]["p95_ms"]
    assert set(metrics["latency"]) == {"mean_ms", "p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "sample_count"}
    assert metrics["throughput"]["tokens_per_sec"] > 0
    engine.reset_metrics()
    assert engine.get_metrics()["latency"]["sample_count"] == 0
    engine.unload_model()
    engine.unload_model()
    assert not engine.is_loaded


def test_second_model_replaces_the_first(tiny: Path, tmp_path: Path) -> None:
    """load_model again frees the old model and answers with the new one; silence prints nothing."""
    make_tiny_llama(tmp_path / "other.gguf", seed=5)
    with llcuda.InferenceEngine() as engine:
        engine.load_model(tiny, silent=True)
        first = engine.llm
        before = engine.infer("the quick", temperature=0.0, ignore_eos=True, max_tokens=10).text
        engine.load_model(tmp_path / "other.gguf", silent=True)
        assert first.closed
        assert engine.infer("the quick", temperature=0.0, ignore_eos=True, max_tokens=10).text != before
        with pytest.raises(ModelNotFound):
            engine.load_model(tmp_path / "none.gguf")
        assert engine.is_loaded  # a name that is not there leaves the model in its place


def test_greedy_seed_stop_and_errors(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """temperature=0 is greedy whatever the seed, a seed repeats itself, errors are told in the result."""
    with llcuda.InferenceEngine() as engine:
        assert "load_model" in str(engine.infer("x").error_message)
        engine.load_model(tiny, auto_start=False, silent=True)
        assert engine.is_loaded
        settings = {"max_tokens": 12, "ignore_eos": True}
        greedy = {engine.infer("the dog", temperature=0.0, seed=s, **settings).text for s in (0, 1, 2)}
        assert len(greedy) == 1
        assert engine.infer("the dog", seed=3, **settings).text == engine.infer("the dog", seed=3, **settings).text
        assert len({engine.infer("the dog", seed=s, temperature=1.5, **settings).text for s in range(4)}) > 1
        text = greedy.pop()
        stop = text[3:5]
        assert stop not in engine.infer("the dog", temperature=0.0, stop_sequences=[stop], **settings).text
        bad = engine.infer("the dog", max_tokens=10**6)
        assert not bad.success
        assert "context" in str(bad.error_message)
        assert [r.success for r in engine.batch_infer(["a", ""])] == [False, False]
    captured = capsys.readouterr()
    assert not captured.out + captured.err


def test_a_name_that_is_nearly_there() -> None:
    """The nearest one is named."""
    with pytest.raises(AttributeError, match="did you mean InferenceEngine"):
        llcuda.InferenceEngin  # noqa: B018


def test_wrong_arguments(tiny: Path, tmp_path: Path) -> None:
    """A text in the place of a list is not read letter by letter; what is out of range names itself."""
    make_tiny_bert(tmp_path / "bert.gguf")
    with llcuda.InferenceEngine() as engine:
        for wrong in ({"n_parallel": 0}, {"n_parallel": "2"}, {"ctx_size": "512"}):
            with pytest.raises(InvalidRequest, match=next(iter(wrong))):
                engine.load_model(tiny, silent=True, **wrong)  # type: ignore[arg-type]
        engine.load_model(tiny, silent=True, **llcuda.auto_configure_for_model(tiny, ctx_size=128))
        assert "batch_infer" in str(engine.infer(["a", "b"]).error_message)  # type: ignore[arg-type]
        assert "n is" in str(engine.infer("a", n=2).error_message)
        with pytest.raises(InvalidRequest, match="prompts"):
            engine.batch_infer("abc")
        with pytest.raises(InvalidRequest, match="max_history"):
            llcuda.ChatEngine(engine, max_history="2")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="a text"):
            llcuda.ChatEngine(engine).add_user_message(None)  # type: ignore[arg-type]
    texts = llcuda.EmbeddingEngine(tmp_path / "bert.gguf")
    try:
        search = llcuda.SemanticSearch(texts)
        search.add_documents(iter(["the quick", "brown fox"]))
        with pytest.raises(InvalidRequest, match="one text"):
            search.add_documents("the quick")
        with pytest.raises(InvalidRequest, match="one text"):
            llcuda.TextClustering(texts).cluster("the quick")
        with pytest.raises(InvalidRequest, match="top_k"):
            search.search("fox", top_k="2")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="text 0"):
            texts.embed([1])  # type: ignore[arg-type]
        assert search.documents == ["the quick", "brown fox"]
    finally:
        texts.close()
    assert [path.name for path in llcuda.find_gguf_models(str(tmp_path))] == ["bert.gguf"]
    for call in (
        lambda: llcuda.get_recommended_gpu_layers("1", 2),  # type: ignore[arg-type]
        lambda: llcuda.get_model_recommendations(float("nan")),
        lambda: llcuda.auto_configure_for_model(tiny, vram_gb=float("inf")),
        lambda: llcuda.auto_configure_for_model(tiny, n_parallel="2"),  # type: ignore[arg-type]
        lambda: llcuda.check_gpu_compatibility("7.5"),  # type: ignore[arg-type]
        lambda: llcuda.find_gguf_models(5),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequest):
            call()


def test_chat(smollm2: Path, tmp_path: Path) -> None:
    """A conversation with a system prompt, streamed and not, saved, loaded, cut to max_history."""
    with llcuda.InferenceEngine() as engine:
        engine.load_model("smollm2-135m", ctx_size=1024, silent=True)
        chat = llcuda.ChatEngine(engine, system_prompt="Be brief.", max_history=3, max_tokens=12, temperature=0.0)
        with pytest.raises(InvalidRequest, match="empty"):
            chat.complete()
        answer = chat.complete("Say hello.")
        assert answer
        assert chat.history[-1] == {"role": "assistant", "content": answer}
        pieces: list[str] = []
        second = chat.complete_stream(pieces.append, "And again?")
        assert "".join(pieces) == second
        assert chat.messages[0]["role"] == "system"
        assert [m["role"] for m in chat.messages[1:]] == ["user", "assistant"]
        assert chat.count_tokens() > 0
        chat.save_history(tmp_path / "h.json")
        again = llcuda.ChatEngine(engine)
        again.load_history(tmp_path / "h.json")
        assert again.history == chat.history
        assert again.system_prompt == "Be brief."
        (tmp_path / "bad.json").write_text(json.dumps([1]))
        with pytest.raises(InvalidRequest, match="no saved conversation"):
            again.load_history(tmp_path / "bad.json")
        chat.clear_history()
        assert not chat.history

        conversations = llcuda.ConversationManager(engine, max_tokens=8)
        conversations.create_conversation("a")
        conversations.create_conversation("b").add_user_message("x")
        assert conversations.switch_conversation("a") is conversations.get_current()
        conversations.delete_conversation("a")
        assert conversations.list_conversations() == ["b"]
        with pytest.raises(InvalidRequest, match="no conversation"):
            conversations.switch_conversation("a")


def test_embeddings(tmp_path: Path) -> None:
    """Vectors, their cache, and search by cosine."""
    make_tiny_bert(tmp_path / "bert.gguf")
    engine = llcuda.EmbeddingEngine(tmp_path / "bert.gguf", cache_size=2)
    try:
        texts = ["the quick brown fox", "the weather", "one two three"]
        vectors = engine.embed_batch(texts)
        assert vectors.shape == (3, engine.dimension)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(engine.embed(texts[0]), vectors[0], atol=1e-5)
        assert len(engine._cache) == 2
        assert engine.embed_batch([]).shape == (0, engine.dimension)
        search = llcuda.SemanticSearch(engine)
        search.add_documents(texts, metadata=[1, 2, 3])
        document, score, data = search.search("one two three", top_k=2)[0]
        assert (document, data) == ("one two three", 3)
        assert score == pytest.approx(1, abs=1e-4)
        with pytest.raises(InvalidRequest, match="5 groups"):
            llcuda.TextClustering(engine).cluster(texts)
    finally:
        engine.close()


def test_machine(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the machine has, and settings from the file's real layers."""
    assert llcuda.detect_platform() in ("local", "colab", "kaggle")
    assert llcuda.check_cuda_available() == (llcuda.get_cuda_device_info() is not None)
    verdict = llcuda.check_gpu_compatibility(99.0)
    assert not verdict["compatible"]
    assert verdict["reason"]
    settings = llcuda.auto_configure_for_model(tiny, vram_gb=24)
    assert settings["n_layers"] == 2
    assert settings["gpu_layers"] == 3
    assert settings["ctx_size"] == 512
    assert llcuda.auto_configure_for_model(tiny, vram_gb=0)["gpu_layers"] == 0
    assert llcuda.get_recommended_gpu_layers(4.0, 2.0) == 12
    assert llcuda.get_recommended_gpu_layers(1.0, 24.0) == 32
    with pytest.raises(InvalidRequest):
        llcuda.get_recommended_gpu_layers(0, 1)
    llcuda.print_system_info()
    assert "usable cores" in capsys.readouterr().out


def test_models(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files on the disk by size and architecture; the registry; loading by a part of a name."""
    make_tiny_llama(tmp_path / "a-tiny-llama.gguf", {"general.name": "A"})
    make_tiny_bert(tmp_path / "sub.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    manager = llcuda.ModelManager([tmp_path])
    assert sorted(m.architecture for m in manager.models) == ["bert", "llama"]
    assert [m.name for m in manager.find_by_architecture("llama")] == ["A"]
    assert len(manager.find_by_size(max_gb=0.001)) == 2
    best = manager.get_best_for_vram(1)
    assert best is not None
    assert best.n_layers == 2
    assert manager.get_best_for_vram(0) is None
    assert llcuda.ModelInfo.from_file(tiny) == llcuda.inspect_gguf(tiny)
    assert "general.architecture = 'llama'" in capsys.readouterr().out
    assert llcuda.ModelInfo.from_file(tiny).file_type == "F32"
    registry = llcuda.list_registry_models()
    assert registry["gemma-3-1b-Q4_K_M"]["repo"] == "unsloth/gemma-3-1b-it-GGUF"
    assert "smollm2-135m" in llcuda.get_model_recommendations(4.0)
    assert not llcuda.get_model_recommendations(0.1)
    monkeypatch.chdir(tmp_path)
    with llcuda.load_model_smart("a-tiny", silent=True) as engine:
        assert engine.model_path is not None
        assert engine.model_path.name == "a-tiny-llama.gguf"
    with pytest.raises(ModelNotFound):
        llcuda.load_model_smart("nothing-like-it", silent=True)


def test_unsloth(tiny: Path, tmp_path: Path) -> None:
    """A LoRA folder with its base answers as the merged model does."""
    folder = peft_folder(tmp_path / "lora")
    merged = llcuda.merge_lora_adapters(tiny, folder, tmp_path / "merged.gguf")
    adapter = llcuda.LoRAAdapter(folder, tiny)
    assert len(adapter.extract_adapter_weights()) == 14
    assert adapter.save_merged(tmp_path / "m2.gguf").read_bytes() == merged.read_bytes()
    settings = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 12}
    with llcuda.load_unsloth_model(folder, base=tiny, max_seq_length=256) as tuned:
        text = tuned.infer("the quick brown", **settings).text
    with llcuda.UnslothModelLoader(256, load_in_4bit=False).load(merged) as whole:
        assert whole.infer("the quick brown", **settings).text == text
    with pytest.raises(InvalidRequest, match="base"):
        llcuda.load_unsloth_model(folder)


def test_load_in_4bit(tmp_path: Path, bundle: InstalledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """UnslothModelLoader's default takes a copy in 4 bits, made once; of a file in 4 bits the file; False: as it is."""
    monkeypatch.setenv("LLCUDA_FFI_BUNDLE", str(bundle.path))
    monkeypatch.setenv("LLCUDA_FFI_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source.gguf"
    make_tiny_llama(source, embd=256, ff=512)
    used = []
    for _ in range(2):
        with llcuda.UnslothModelLoader(max_seq_length=256).load(source) as engine:
            assert engine.infer("the quick brown", max_tokens=4).success
            assert engine.model_path is not None
            used.append((engine.model_path, engine.model_path.stat().st_mtime_ns))
    small = used[0][0]
    assert used[0] == used[1]
    assert small.stat().st_size < source.stat().st_size / 3
    for loader, path in (
        (llcuda.UnslothModelLoader(256), small),
        (llcuda.UnslothModelLoader(256, load_in_4bit=False), source),
    ):
        with loader.load(path) as engine:
            assert engine.model_path == path
    with pytest.raises(InvalidRequest, match="load_in_4bit"):
        llcuda.UnslothModelLoader(load_in_4bit="yes")


def test_quick_infer(tiny: Path) -> None:
    """One line, one answer; errors raise."""
    assert isinstance(llcuda.quick_infer("the quick", tiny, max_tokens=4), str)
    with pytest.raises(InvalidRequest):
        llcuda.quick_infer("", tiny)
