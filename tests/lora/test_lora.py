"""LoRA: PEFT folders made here by hand, converted, hot-swapped and merged: one and the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import Llama, SamplingParams, lora
from llcuda_ffi.core.adapter import LoraAdapter, active_adapters, set_adapters, set_control_vector
from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.errors import ClosedError, InvalidModelFile, InvalidRequest, ModelError, ModelNotFound, UnsupportedModel
from llcuda_ffi.gguf import GGUFReader
from llcuda_ffi.gguf.safetensors import SafeTensors, write_safetensors
from llcuda_ffi.gguf.writer import write_gguf
from llcuda_ffi.lora.peft import permute_rows
from llcuda_ffi.quantization.files import quantize

from ..support.tiny_model import make_tiny_llama, split_tiny_llama

EMBD, HEADS, KV, FF, RANK, ALPHA = 32, 4, 2, 64, 4, 16
SIZES = {  # module → (rows, columns)
    "self_attn.q_proj": (EMBD, EMBD),
    "self_attn.k_proj": (EMBD // HEADS * KV, EMBD),
    "self_attn.v_proj": (EMBD // HEADS * KV, EMBD),
    "self_attn.o_proj": (EMBD, EMBD),
    "mlp.gate_proj": (FF, EMBD),
    "mlp.up_proj": (FF, EMBD),
    "mlp.down_proj": (EMBD, FF),
}


def peft_folder(folder: Path, seed: int = 0, **config: object) -> Path:
    """A LoRA as peft writes it, with random matrices for every module of a tiny llama."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        for module, (rows, columns) in SIZES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = rng.standard_normal((RANK, columns)).astype(np.float32) * 0.1
            tensors[f"{name}.lora_B.weight"] = rng.standard_normal((rows, RANK)).astype(np.float32) * 0.1
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "base.gguf"
    make_tiny_llama(path)
    return path


def logits(context: Context) -> np.ndarray:
    assert context.memory is not None
    context.memory.clear()
    batch = Batch(12)
    for i in range(12):
        batch.add(7 * i + 3, i, output=True)
    context.decode(batch)
    return np.stack([context.logits(i) for i in range(12)])


def of_file(path: Path) -> np.ndarray:
    with Model.load(path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        return logits(context)


def by_numpy(base: Path, folder: Path, target: Path, scale: float) -> Path:
    """The merged model, computed by numpy alone from the files."""
    from ..support.tiny_model import F32, tiny_llama

    file = tiny_llama()
    tensors = SafeTensors(folder / "adapter_model.safetensors")
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"} | {
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    for layer in range(2):
        for module in SIZES:
            prefix = f"base_model.model.model.layers.{layer}.{module}."
            change = scale * tensors[prefix + "lora_B.weight"] @ tensors[prefix + "lora_A.weight"]
            heads = {"q_proj": HEADS, "k_proj": KV}.get(module.split(".")[1])
            if heads:  # each head's two halves, interleaved
                half = len(change) // heads // 2
                rows = [h * 2 * half + k * half + i for h in range(heads) for i in range(half) for k in (0, 1)]
                change = change[rows]
            name = f"blk.{layer}.{names[module.split('.')[1]]}.weight"
            ne, _, raw = file.tensors[name]
            merged = np.frombuffer(raw, np.float32) + change.astype(np.float32).ravel()
            file.tensors[name] = (ne, F32, merged.astype(np.float32).tobytes())
    file.write(target)
    return target


@pytest.mark.parametrize("rslora", [False, True])
def test_hot_swap_is_merge_is_numpy(base: Path, tmp_path: Path, rslora: bool) -> None:
    """Adapter set on a context, adapter merged by us and weights merged by numpy give the same logits."""
    folder = peft_folder(tmp_path / "peft", use_rslora=rslora)
    scale = ALPHA / (RANK**0.5 if rslora else RANK)
    adapter_file = lora.convert(folder, base, tmp_path / "adapter.gguf")
    expected = of_file(by_numpy(base, folder, tmp_path / "numpy.gguf", scale))
    before = of_file(base)
    assert np.abs(expected - before).max() > 0.05
    np.testing.assert_allclose(of_file(lora.merge(base, folder, tmp_path / "merged.gguf")), expected, atol=2e-5)
    np.testing.assert_allclose(of_file(lora.merge(base, adapter_file, tmp_path / "m2.gguf")), expected, atol=2e-5)
    with Model.load(base) as model, Context(model, n_ctx=64, n_threads=1) as context:
        adapter = LoraAdapter.load(model, adapter_file)
        assert adapter.alpha == ALPHA
        assert adapter.metadata["adapter.type"] == "lora"
        assert adapter.invocation_tokens == []
        np.testing.assert_allclose(logits(context), before, atol=1e-6)
        set_adapters(context, {adapter: 1.0})
        np.testing.assert_allclose(logits(context), expected, atol=2e-5)
        half = of_file(by_numpy(base, folder, tmp_path / "half.gguf", scale / 2))
        set_adapters(context, {adapter: 0.5})
        np.testing.assert_allclose(logits(context), half, atol=2e-5)
        set_adapters(context, {})
        np.testing.assert_allclose(logits(context), before, atol=1e-6)


def test_two_adapters(base: Path, tmp_path: Path) -> None:
    """Two adapters at once, with scales, are their merged sum; merged files take any file type."""
    a, b = peft_folder(tmp_path / "a", 1), peft_folder(tmp_path / "b", 2)
    expected = of_file(lora.merge(base, {a: 0.7, b: -0.3}, tmp_path / "m.gguf"))
    with Model.load(base) as model, Context(model, n_ctx=64, n_threads=1) as context:
        one = LoraAdapter.load(model, lora.convert(a, base, tmp_path / "a.gguf"))
        two = LoraAdapter.load(model, lora.convert(b, base, tmp_path / "b.gguf", dtype=np.float16))
        set_adapters(context, {one: 0.7, two: -0.3})
        np.testing.assert_allclose(logits(context), expected, atol=5e-3)
        assert active_adapters(context) == {one: 0.7, two: -0.3}
    q8 = lora.merge(base, {a: 0.7, b: -0.3}, tmp_path / "q8.gguf", "Q8_0")
    assert np.corrcoef(of_file(q8).ravel(), expected.ravel())[0, 1] > 0.99
    make_tiny_llama(tmp_path / "base-q8.gguf", kind=8)
    again = lora.merge(tmp_path / "base-q8.gguf", {a: 0.7, b: -0.3}, tmp_path / "q8b.gguf")
    with GGUFReader(again) as reader:
        assert reader.tensors["blk.0.attn_q.weight"].ggml_type.name == "Q8_0"
    assert np.corrcoef(of_file(again).ravel(), expected.ravel())[0, 1] > 0.99


def test_on_a_running_llama(base: Path, tmp_path: Path) -> None:
    """`applied` changes the answers inside the with, and the base model's come back; no prefix is shared."""
    folder = peft_folder(tmp_path / "p")
    with Llama(base, n_ctx=128, n_parallel=2) as llm, Llama(lora.merge(base, folder, tmp_path / "m.gguf")) as merged:
        adapter = lora.load(llm, lora.convert(folder, base, tmp_path / "a.gguf"))
        prompt = "the quick brown fox jumps over"
        settings = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
        plain = llm.generate(prompt, **settings).token_ids
        with lora.applied(llm, {adapter: 1.0}):
            inside = llm.generate(prompt, **settings).token_ids
        assert inside == merged.generate(prompt, **settings).token_ids
        assert inside != plain
        assert llm.generate(prompt, **settings).token_ids == plain


def test_requests_with_adapters_of_their_own(base: Path, tmp_path: Path) -> None:
    """Requests with different adapters and none, at once: each has the answer it has alone, and its own prefixes."""
    files = [lora.convert(peft_folder(tmp_path / f"p{i}", i), base, tmp_path / f"{i}.gguf") for i in range(2)]
    prompt = "the quick brown fox jumps over the lazy dog and over"
    settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
    with Llama(base, n_ctx=128, n_parallel=4) as llm:
        one, two = (lora.load(llm, file) for file in files)
        kinds = [{}, {one: 1.0}, {one: 0.5}, {two: 1.0}, {one: 0.3, two: 0.7}]
        alone = []
        for kind in kinds:
            with lora.applied(llm, kind):
                alone.append(llm.generate(prompt, **settings).token_ids)
        assert len({tuple(tokens) for tokens in alone}) == len(kinds)
        asked = [SamplingParams(lora=kinds[i % 5] or None, **settings) for i in range(11)]
        for _ in range(2):  # the second time with kept prefixes
            assert [c.token_ids for c in llm.generate([prompt] * 11, asked)] == [alone[i % 5] for i in range(11)]
        assert llm.generate(prompt, **settings, lora={one: 1.0}).token_ids == alone[1]
        again = llm.generate(prompt, **settings, lora=one)
        assert again.token_ids == alone[1]
        assert again.usage.cached_tokens > 0
        # a swap for all requests is what requests without adapters get
        with lora.applied(llm, {two: 1.0}):
            assert [c.token_ids for c in llm.generate([prompt] * 2, [asked[0], asked[1]])] == [alone[3], alone[1]]
        assert llm.generate(prompt, **settings).token_ids == alone[0]


def test_swapped_under_load(base: Path, tmp_path: Path) -> None:
    """Requests that run or wait end with the adapters they came to, later ones have those of the swap; what is saved
    meanwhile says rightly how it was computed."""
    files = [lora.convert(peft_folder(tmp_path / f"p{i}", i), base, tmp_path / f"{i}.gguf") for i in range(2)]
    prompt = "the quick brown fox jumps over the lazy dog and over"
    settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True}
    with Llama(base, n_ctx=128, n_parallel=2) as llm:
        one, two = (lora.load(llm, file) for file in files)
        kinds: list[dict[Any, float]] = [{}, {one: 1.0}, {two: 1.0}, {}, {one: 0.5}, {}]
        alone = []
        for kind in kinds:
            with lora.applied(llm, kind):
                alone.append(llm.generate(prompt, **settings).token_ids)
        assert len({tuple(tokens) for tokens in alone}) == 4
        streams, seen = [], []
        for kind in kinds:  # more than run at once
            lora.swap(llm, kind)
            streams.append(llm.stream(prompt, **settings))
            seen.append([next(streams[-1])])
        own = llm.stream(prompt, **settings, lora={two: 1.0})
        next(own)
        with pytest.raises(InvalidRequest, match="finite"):
            lora.swap(llm, {one: float("nan")})
        saved = llm.save_state()
        for stream, chunks in zip(streams, seen, strict=True):
            chunks += list(stream)
        assert [[i for chunk in chunks for i in chunk.token_ids] for chunks in seen] == alone
        assert list(own)[-1].completion.token_ids == alone[2]
        assert llm.generate(prompt, **settings).token_ids == alone[0]
        llm.load_state(saved)
        lora.swap(llm, {one: 1.0})
        if saved.states:
            with pytest.raises(InvalidRequest, match="adapters"):
                llm.load_state(saved)


def test_refused_adapters_of_a_request(base: Path, tmp_path: Path) -> None:
    """What is no adapter of this model is refused; one closed meanwhile ends its own requests only."""
    file = lora.convert(peft_folder(tmp_path / "p"), base, tmp_path / "a.gguf")
    with Llama(base, n_ctx=128, n_parallel=2) as llm, Llama(base, n_ctx=128) as other:
        adapter, foreign, closed = lora.load(llm, file), lora.load(other, file), lora.load(llm, file)
        closed.close()
        for bad in (foreign, "a.gguf", {}, {adapter: float("nan")}, {"a": 1.0}, 3):
            with pytest.raises(InvalidRequest):
                llm.generate("the", max_tokens=4, lora=bad)
        with pytest.raises(ClosedError):
            llm.generate("the", max_tokens=4, lora=closed)
        plain = llm.generate("the quick", max_tokens=30, temperature=0, ignore_eos=True)
        stream = llm.stream("the quick", max_tokens=30, temperature=0, ignore_eos=True, lora=adapter)
        next(stream)
        adapter.close()
        with pytest.raises(ClosedError):
            list(stream)
        assert llm.generate("the quick", max_tokens=30, temperature=0, ignore_eos=True).token_ids == plain.token_ids


def test_lifetime(base: Path, tmp_path: Path) -> None:
    """An adapter closed while it is set is taken off first; after its model is closed it is closed too."""
    file = lora.convert(peft_folder(tmp_path / "p"), base, tmp_path / "a.gguf")
    model = Model.load(base)
    context = Context(model, n_ctx=64, n_threads=1)
    before = logits(context)
    adapter = LoraAdapter.load(model, file)
    set_adapters(context, {adapter: 1.0})
    adapter.close()
    adapter.close()
    np.testing.assert_allclose(logits(context), before, atol=1e-6)
    with pytest.raises(ClosedError):
        set_adapters(context, {adapter: 1.0})
    other = LoraAdapter.load(model, file)
    set_adapters(context, {other: 1.0})
    model.close()
    assert other.closed
    with pytest.raises(ClosedError):
        other.metadata  # noqa: B018


def test_refused_adapters(base: Path, tmp_path: Path) -> None:
    """Adapters of another model, shape or architecture, and scales that are no numbers."""
    file = lora.convert(peft_folder(tmp_path / "p"), base, tmp_path / "a.gguf")
    make_tiny_llama(tmp_path / "wide.gguf", embd=64)
    with Model.load(base) as model, Model.load(tmp_path / "wide.gguf") as wide, Context(model, n_ctx=64) as context:
        with pytest.raises(ModelError, match="does not fit"):
            LoraAdapter.load(wide, file)
        with pytest.raises(InvalidModelFile):
            LoraAdapter.load(model, base)
        with pytest.raises(ModelNotFound):
            LoraAdapter.load(model, tmp_path / "none.gguf")
        with pytest.raises(InvalidRequest, match=r"LoraAdapter\.load"):
            LoraAdapter()
        adapter = LoraAdapter.load(model, file)
        with pytest.raises(InvalidRequest, match="finite"):
            set_adapters(context, {adapter: float("nan")})
        with Model.load(base) as again, Context(again, n_ctx=64) as foreign, pytest.raises(InvalidRequest):
            set_adapters(foreign, {adapter: 1.0})
        rows = 5
        pair = {
            "token_embd.weight.lora_a": np.zeros((model.vocab.n_tokens, rows), np.float32),
            "token_embd.weight.lora_b": np.zeros((EMBD, rows), np.float32),
        }
        metadata = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
        metadata["adapter.lora.alpha"] = 1.0  # type: ignore[assignment]
        tied = write_gguf(tmp_path / "tied.gguf", metadata, pair)
        with pytest.raises(UnsupportedModel, match="merge the adapter"):
            LoraAdapter.load(model, tied)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"peft_type": "IA3"}, UnsupportedModel, "IA3"),
        ({"use_dora": True}, UnsupportedModel, "use_dora"),
        ({"bias": "all"}, UnsupportedModel, "biases"),
        ({"r": 0}, InvalidModelFile, "above 0"),
    ],
)
def test_refused_folders(base: Path, tmp_path: Path, config: dict[str, object], error: type, message: str) -> None:
    """What a GGUF adapter cannot express is refused by name."""
    with pytest.raises(error, match=message):
        lora.convert(peft_folder(tmp_path / "p", **config), base, tmp_path / "a.gguf")


def test_hostile_patterns(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that Python would match for ever ends the conversion, not the process; real expressions work."""
    hostile = {"(a|a)*b": 1, "([a-z_.0-9]+)+!": 1}
    folder = peft_folder(tmp_path / "p", alpha_pattern=hostile, target_modules="(a|a)*b")
    with monkeypatch.context() as patched, pytest.raises(InvalidModelFile, match="take more than 2 s"):
        patched.setattr(lora.patterns, "SECONDS", 2.0)
        lora.convert(folder, base, tmp_path / "a.gguf")
    with pytest.raises(InvalidModelFile, match="cannot be used"):
        lora.convert(peft_folder(tmp_path / "q", alpha_pattern={"(": 1}), base, tmp_path / "a.gguf")
    some = r"layers\.(0|1)\..*_proj"
    found = lora.patterns.first_match([some, "mlp.up_proj"], ["model.layers.1.q_proj", "x.mlp.up_proj"])
    assert found == {"model.layers.1.q_proj": some, "x.mlp.up_proj": "mlp.up_proj"}


def test_alpha_pattern(base: Path, tmp_path: Path) -> None:
    """A scale of one module's own is kept by conversion and merge."""
    folder = peft_folder(tmp_path / "p", alpha_pattern={"q_proj": 2 * ALPHA, "layers.1.mlp.up_proj": 1})
    merged = of_file(lora.merge(base, folder, tmp_path / "m.gguf"))
    with Model.load(base) as model, Context(model, n_ctx=64, n_threads=1) as context:
        set_adapters(context, {LoraAdapter.load(model, lora.convert(folder, base, tmp_path / "a.gguf")): 1.0})
        np.testing.assert_allclose(logits(context), merged, atol=2e-5)


def test_control_vector(base: Path) -> None:
    """A control vector changes the logits in its layers, and None takes it off."""
    with Model.load(base) as model, Context(model, n_ctx=64, n_threads=1) as context:
        before = logits(context)
        vector = np.ones((model.n_layer - 1, model.n_embd), np.float32)
        set_control_vector(context, vector)
        assert np.abs(logits(context) - before).max() > 1e-3
        set_control_vector(context, None)
        np.testing.assert_allclose(logits(context), before, atol=1e-6)
        with pytest.raises(InvalidRequest, match="shape"):
            set_control_vector(context, np.ones((2, 2)))
        with pytest.raises(InvalidRequest, match="finite"):
            set_control_vector(context, vector * np.inf)
        with pytest.raises(InvalidRequest, match="layers"):
            set_control_vector(context, vector, 1, 9)


def test_permutation() -> None:
    """Rows of a head: first and second half interleaved."""
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert permute_rows(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 16,
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(64) + bytes(8),
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}}'.ljust(64) + bytes(16),
    ],
)
def test_broken_safetensors(tmp_path: Path, raw: bytes) -> None:
    """A broken file is an exception."""
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(InvalidModelFile):
        SafeTensors(tmp_path / "x.safetensors")


def test_base_in_parts(base: Path, tmp_path: Path) -> None:
    """A base model in several files is refused, not merged in part; joined by only_copy it gives the same model."""
    parts = split_tiny_llama(tmp_path)
    folder = peft_folder(tmp_path / "lora")
    with pytest.raises(UnsupportedModel, match="only_copy"):
        lora.merge(parts, folder, tmp_path / "merged.gguf")
    with pytest.raises(UnsupportedModel, match="one part of 2"):
        lora.convert(folder, parts, tmp_path / "adapter.gguf")
    joined = quantize(parts, tmp_path / "joined.gguf", only_copy=True).path
    whole = lora.merge(base, folder, tmp_path / "whole.gguf")
    np.testing.assert_array_equal(of_file(lora.merge(joined, folder, tmp_path / "merged.gguf")), of_file(whole))
