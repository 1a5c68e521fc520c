"""The preflight: files that would end the process are refused by name, files that run are not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda_ffi.bundles import InstalledBundle
from llcuda_ffi.errors import InvalidModelFile, ModelError, UnsupportedModel
from llcuda_ffi.gguf import check, check_adapter

from ..support.gguf_mutations import fit
from ..support.tiny_architectures import TINY
from ..support.tiny_model import F16, TinyFile, Typed, make_tiny_llama, split_tiny_llama, tiny_bert, tiny_llama
from ..support.upstream_sdist import upstream_sdist

ROOT = Path(__file__).resolve().parents[2]
TOKENS = "tokenizer.ggml.tokens"


def _set(**values: Any) -> Callable[[TinyFile], None]:
    def change(file: TinyFile) -> None:
        for key, value in values.items():
            file.metadata[key.replace("__", ".")] = value

    return change


def _token(i: int, text: str) -> Callable[[TinyFile], None]:
    def change(file: TinyFile) -> None:
        file.metadata[TOKENS] = [*file.metadata[TOKENS][:i], text, *file.metadata[TOKENS][i + 1 :]]

    return change


def _tensor(name: str, ne: tuple[int, ...] | None = None, kind: int | None = None) -> Callable[[TinyFile], None]:
    def change(file: TinyFile) -> None:
        old_ne, old_kind, raw = file.tensors[name]
        file.tensors[name] = (
            ne or old_ne,
            old_kind if kind is None else kind,
            fit(ne or old_ne, old_kind if kind is None else kind, raw),
        )

    return change


LLAMA: dict[str, tuple[Callable[[TinyFile], None], type[ModelError], str]] = {
    "no layers": (_set(llama__block_count=0), InvalidModelFile, "block_count is 0"),
    "too many layers": (_set(llama__block_count=513), InvalidModelFile, "block_count is 513"),
    "unknown rope scaling": (_set(llama__rope__scaling__type="spiral"), UnsupportedModel, "spiral"),
    "experts used without experts": (_set(llama__expert_used_count=2), InvalidModelFile,
    "expert_used_count is 2"),
    "more experts used than there are": (
        _set(llama__expert_count=2, llama__expert_used_count=3),
        InvalidModelFile,
        "more than expert_count 2",
    ),
    "expert groups that do not divide": (
        _set(llama__expert_count=8, llama__expert_used_count=2, llama__expert_group_count=3),
        InvalidModelFile,
        "must divide the 8 experts",
    ),
    "heads no multiple of key heads": (_set(llama__attention__head_count_kv=3), InvalidModelFile,
    "no multiple"),
    "heads differ by layer, tensors do not": (
        _set(llama__attention__head_count_kv=[2, 1]),
        InvalidModelFile,
        "blk.1.attn_k.weight",
    ),
    "odd head": (
        _set(llama__attention__key_length=7, llama__attention__value_length=7,
        llama__rope__dimension_count=7),
        InvalidModelFile,
        "even",
    ),
    "no head size": (_set(llama__attention__key_length=0), InvalidModelFile, "no size"),
    "keys and values differ": (_set(llama__attention__value_length=16), InvalidModelFile, "needs them equal"),
    "half a head rotates": (_set(llama__rope__dimension_count=4), InvalidModelFile, "needs the head size 8"),
    "epsilon not a number": (
        _set(llama__attention__layer_norm_rms_epsilon=float("nan")),
        InvalidModelFile,
        "positive number",
    ),
    "unknown pooling": (_set(llama__pooling_type=9), UnsupportedModel, "pooling_type is 9"),
    "text where numbers belong": (
        _set(llama__attention__head_count=["4", "4"]),
        InvalidModelFile,
        "numbers are needed",
    ),
    "token twice": (_token(5, "\u0100"), InvalidModelFile, "twice, as 0 and 5"),
    "token twice up to a NUL": (_token(5, "\u0100\0x"), InvalidModelFile, "twice, as 0 and 5"),
    "tokens are numbers": (_set(tokenizer__ggml__tokens=[1, 2]), InvalidModelFile,
    "array of string is needed"),
    "no tokens": (_set(tokenizer__ggml__tokens=Typed("array", [], "str")), InvalidModelFile, "is empty"),
    "too few token types": (_set(tokenizer__ggml__token_type=[1, 1]), InvalidModelFile,
    "2 items for 379 tokens"),
    "too few scores": (_set(tokenizer__ggml__scores=[0.5]), InvalidModelFile, "1 items for 379 tokens"),
    "merges are numbers": (_set(tokenizer__ggml__merges=[1]), InvalidModelFile, "array of string is needed"),
    "SentencePiece without bytes": (_set(tokenizer__ggml__model="llama"), UnsupportedModel, "byte tokens"),
    "RWKV without bytes": (_set(tokenizer__ggml__model="rwkv"), UnsupportedModel, "single bytes"),
    "a later part's number": (
        _set(split__no=Typed("u32", 1), split__count=Typed("u16", 2)),
        InvalidModelFile,
        "split.no must be a uint16",
    ),
    "norm in half precision": (_tensor("output_norm.weight", kind=F16), UnsupportedModel, "F32"),
    "matrix of integers": (_tensor("blk.0.attn_q.weight", kind=26), UnsupportedModel, "I32"),
    "matrix of doubles": (_tensor("blk.0.ffn_up.weight", kind=28), UnsupportedModel, "F64"),
    "unknown tensor type": (_tensor("blk.0.ffn_up.weight", kind=99), UnsupportedModel, "unknown type 99"),
    "empty tensor": (_tensor("blk.0.ffn_up.weight", ne=(32, 0)), InvalidModelFile, "is empty"),
    "rows that blocks do not divide": (_tensor("blk.0.ffn_up.weight", ne=(33, 64), kind=2),
    InvalidModelFile, "multiple of 32"),
    "larger than any file": (_tensor("blk.0.ffn_up.weight", ne=(1 << 40, 1 << 40)), InvalidModelFile,
    "larger than any file"),
    "five dimensions": (_tensor("blk.0.ffn_up.weight", ne=(2, 2, 2, 2, 2)), InvalidModelFile, "5 dimensions"),
    "alignment zero": (_set(general__alignment=0), InvalidModelFile, "power of two"),
    "alignment of another type": (_set(general__alignment=Typed("u64", 32)), InvalidModelFile,
    "must be a uint32"),
}  # fmt: skip


@pytest.mark.parametrize("case", LLAMA)
def test_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    """Each rule refuses its file, and the message names the key or tensor and what was found."""
    change, error, message = LLAMA[case]
    file = tiny_llama()
    change(file)
    file.write(tmp_path / "model.gguf")
    with pytest.raises(error, match=message):
        check(tmp_path / "model.gguf")


BERT: dict[str, tuple[Callable[[TinyFile], None], str]] = {
    "bytes in WordPiece": (_set(tokenizer__ggml__token_type=[6] * 205), "as a byte"),
    "no token for unknown words": (_set(tokenizer__ggml__unknown_token_id=999,
    tokenizer__ggml__tokens=["a", "b", "c"]), "unknown_token_id"),
    "an output wider than the state": (_set(bert__embedding_length_out=64), "embedding_length_out is 64"),
}  # fmt: skip


@pytest.mark.parametrize("case", BERT)
def test_embedding_models_refused(tmp_path: Path, case: str) -> None:
    """The rules that only embedding models run into."""
    change, message = BERT[case]
    file = tiny_bert()
    change(file)
    file.write(tmp_path / "model.gguf")
    with pytest.raises(InvalidModelFile, match=message):
        check(tmp_path / "model.gguf")


def test_duplicates_and_overlaps(tmp_path: Path) -> None:
    """A key or tensor name twice, and a tensor that lies in another one."""
    raw = tiny_llama().bytes()
    path = tmp_path / "model.gguf"
    for old, new in (
        (b"general.file_type", b"llama.block_count"),
        (b"blk.0.ffn_gate.weight", b"blk.1.ffn_gate.weight"),
    ):
        path.write_bytes(raw.replace(old, new, 1))
        with pytest.raises(InvalidModelFile, match="twice"):
            check(path)
    at = raw.index(b"blk.0.attn_k.weight") + len(b"blk.0.attn_k.weight") + 4 + 16 + 4
    path.write_bytes(raw[:at] + bytes(8) + raw[at + 8 :])
    with pytest.raises(InvalidModelFile, match="without overlap"):
        check(path)


def test_big_endian_is_unsupported(tmp_path: Path) -> None:
    """A file of the other byte order is sound, but not for this machine."""
    file = tiny_llama()
    file.order = ">"
    file.tensors = {"t": ((1,), 0, np.ones(1, ">f4").tobytes())}
    file.write(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedModel, match="big-endian"):
        check(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_pass(tmp_path: Path, name: str) -> None:
    """Every kind of model that the fuzz test starts from is accepted as it is."""
    TINY[name]().write(tmp_path / "model.gguf")
    assert check(tmp_path / "model.gguf").n_tensors


def test_real_models_pass(smollm2: Path) -> None:
    """The real model is accepted and described."""
    report = check(smollm2)
    assert (report.architecture, report.n_vocab, report.n_tensors) == ("llama", 49152, 272)
    assert report.n_params == 134_515_008
    assert report.types == {"Q8_0": 1, "F32": 61, "Q4_1": 210}


def test_real_vocabularies_pass() -> None:
    """llama.cpp's own test vocabularies, of every tokenizer family, are accepted."""
    files = sorted((upstream_sdist() / "vendor" / "llama.cpp" / "models").glob("*.gguf"))
    assert len(files) > 15
    for file in files:
        assert check(file).n_vocab > 30_000


def test_a_split_model_is_checked_whole(tmp_path: Path, bundle: InstalledBundle) -> None:
    """A model in two parts loads; a later part that would abort libllama is refused through the first one."""
    good = split_tiny_llama(tmp_path)
    assert check(good).split == (0, 2)
    command = [sys.executable, "-m", "tests.support.gguf_worker"]
    done = subprocess.run(command, input=f"{good}\n", cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])[0] == "ok"
    with pytest.raises(InvalidModelFile, match=r"00002-of-00002.*split.no must be a uint16, not uint32"):
        check(split_tiny_llama(tmp_path, "u32"))


def _adapter() -> TinyFile:
    file = TinyFile(
        {
            "general.type": "adapter",
            "general.architecture": "llama",
            "adapter.type": "lora",
            "adapter.lora.alpha": 16.0,
        }
    )
    rng = np.random.default_rng(0)
    file.add("blk.0.attn_q.weight.lora_a", (32, 4), rng)
    file.add("blk.0.attn_q.weight.lora_b", (4, 32), rng)
    return file


ADAPTERS: dict[str, tuple[Callable[[TinyFile], None], str]] = {
    "type not a string": (_set(general__type=1), "general.type is uint32"),
    "alpha not a float": (_set(adapter__lora__alpha=16), "adapter.lora.alpha is uint32"),
    "another kind": (_set(adapter__type="control"), "is 'control' instead of 'lora'"),
    "half a pair": (lambda file: file.tensors.pop("blk.0.attn_q.weight.lora_b") and None, "has no .lora_b"),
    "ranks differ": (_tensor("blk.0.attn_q.weight.lora_b", ne=(8, 32)), "different ranks"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(tmp_path: Path, case: str) -> None:
    """LoRA files that would abort libllama are refused; the one they were made from is not."""
    change, message = ADAPTERS[case]
    file = _adapter()
    file.write(tmp_path / "good.gguf")
    check_adapter(tmp_path / "good.gguf")
    change(file)
    file.write(tmp_path / "bad.gguf")
    with pytest.raises(InvalidModelFile, match=message):
        check_adapter(tmp_path / "bad.gguf")


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    """A model given as an adapter is refused with what is missing."""
    make_tiny_llama(tmp_path / "model.gguf")
    with pytest.raises(InvalidModelFile, match="no LoRA adapter"):
        check_adapter(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("qwen35", {}, r"a state of 8 \(qwen35\.ssm\.inner_size 32 / ssm\.time_step_rank 4\)"),
        ("qwen35", {"qwen35.ssm.inner_size": 64}, ""),
        ("rwkv7", {"rwkv7.wkv.head_size": 32}, "head_size is 32"),
        ("rwkv7", {"rwkv7.wkv.head_size": 64}, ""),
        ("kimi-linear", {"kimi-linear.kda.head_dim": 8}, "head_dim is 8"),
        ("kimi-linear", {"kimi-linear.kda.head_dim": 128}, ""),
        ("mamba", {}, ""),
        ("mamba 2 x 128", {}, "the convolution .* is 2 wide"),
        ("mamba 2 x 64", {}, ""),  # the CPU computes it
    ],
)
def test_sizes_that_cuda_lacks(tmp_path: Path, name: str, values: dict[str, int], reason: str) -> None:
    """Sizes at which CUDA's kernels end the process are named; on the CPU the files are sound."""
    architecture, *shape = name.split(" ", 1)
    file = TINY[architecture]() if architecture in TINY else tiny_llama()
    file.metadata["general.architecture"] = architecture
    file.metadata.update(values)
    if shape:
        width, channels = map(int, shape[0].split(" x "))
        file.add("blk.0.ssm_conv1d.weight", (width, channels), np.random.default_rng(0))
    file.write(tmp_path / "model.gguf")
    found = check(tmp_path / "model.gguf").not_on_cuda
    assert re.search(reason, found) if reason else found == ""
