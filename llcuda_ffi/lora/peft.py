"""PEFT's LoRA folders (adapter_config.json and adapter_model.safetensors), read without torch and without peft."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidModelFile, InvalidRequest, ModelNotFound, UnsupportedModel
from ..gguf import GGUFReader, check_adapter
from ..gguf.safetensors import SafeTensors
from ..gguf.writer import write_gguf
from .names import KNOWN, PERMUTED, gguf_name
from .patterns import first_match

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Floats = npt.NDArray[np.float32]

_NAME = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_(A|B|embedding_A|embedding_B)(?:\.[\w-]+)?(?:\.weight)?$")


@dataclass(frozen=True)
class LoraPair:
    """One matrix's change: scale × B·A.

    Attributes:
        a: float32 of shape (rank, columns).
        b: float32 of shape (rows, rank).
        scale: the factor, lora_alpha / r (or / sqrt(r) with rsLoRA).
    """

    a: Floats
    b: Floats
    scale: float


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT LoRA folder.

    Attributes:
        path: the folder.
        config: adapter_config.json.
        pairs: module name ("model.layers.0.self_attn.q_proj") → its pair.
    """

    path: Path
    config: Mapping[str, Any]
    pairs: dict[str, LoraPair]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> PeftAdapter:
        """Read a folder that peft or Unsloth wrote with save_pretrained.

        Raises:
            ModelNotFound: a file is missing.
            InvalidModelFile: a file is broken, or half of a pair is missing.
            UnsupportedModel: another method than LoRA, or a variant of it that GGUF adapters cannot express.
        """
        path = Path(folder)
        try:
            config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelNotFound(f"{path} is no PEFT adapter: it has no {CONFIG}") from None
        except ValueError as error:
            raise InvalidModelFile(f"{path / CONFIG} is no JSON: {error}") from error
        if not isinstance(config, dict):
            raise InvalidModelFile(f"{path / CONFIG} holds no object")
        _check_config(path, config)
        halves: dict[str, dict[str, np.ndarray]] = {}
        tensors = SafeTensors(path / WEIGHTS)
        for name in tensors:
            found = _NAME.match(name)
            if found is None:
                raise UnsupportedModel(
                    f"{path}: tensor {name!r} is no part of a LoRA pair (a module saved whole, DoRA or another "
                    "variant): merge it with peft, then convert the merged model"
                )
            halves.setdefault(found[1], {})[found[2]] = tensors[name]
        pairs = {}
        alphas = _alphas(path, config, list(halves))
        for module, parts in halves.items():
            pairs[module] = _pair(path, module, parts, config, alphas.get(module))
        if not pairs:
            raise InvalidModelFile(f"{path / WEIGHTS} holds no LoRA tensors")
        return cls(path, config, pairs)


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise UnsupportedModel(f"{path} is a PEFT adapter of type {kind}: only LORA can be used with GGUF models")
    for key in ("use_dora", "use_bdlora", "arrow_config", "lora_ga_config"):
        if config.get(key):
            raise UnsupportedModel(f"{path} was trained with {key}: merge it with peft, then convert the merged model")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise UnsupportedModel(f"{path} also trained biases, which a GGUF adapter cannot hold: merge it with peft")
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        raise InvalidModelFile(f"{path / CONFIG}: r must be a whole number above 0, not {config.get('r')!r}")
    if not isinstance(config.get("lora_alpha", 0), (int, float)):
        raise InvalidModelFile(f"{path / CONFIG}: lora_alpha must be a number")


def _pair(
    path: Path, module: str, parts: Mapping[str, np.ndarray], config: Mapping[str, Any], alpha: float | None
) -> LoraPair:
    embedding = "embedding_A" in parts or "embedding_B" in parts
    first, second = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if first not in parts or second not in parts:
        raise InvalidModelFile(f"{path}: {module} has only one half of its LoRA pair")
    a, b = (np.asarray(parts[half], np.float32) for half in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UnsupportedModel(f"{path}: {module} has LoRA matrices of shapes {a.shape} and {b.shape}")
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise InvalidModelFile(f"{path}: {module} holds values that are not finite")
    if embedding:  # the change of an embedding is (B·A) transposed: a row for each token
        a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
    rank = a.shape[0]
    alpha = float(config.get("lora_alpha", rank)) if alpha is None else alpha
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return LoraPair(a, b, scale)


def _alphas(path: Path, config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, float]:
    """The lora_alpha of the modules that alpha_pattern names."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in patterns.values()
    ):
        raise InvalidModelFile(f"{path / CONFIG}: alpha_pattern must give each pattern a number")
    return {module: float(patterns[p]) for module, p in first_match(list(patterns), modules).items()}


def permute_rows(matrix: Floats, heads: int) -> Floats:
    """Rows of Q or K in the order of ggml's rotary embedding: the two halves of a head interleaved."""
    rows, columns = matrix.shape
    split = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows, columns))


@dataclass(frozen=True)
class BaseShape:
    """What must be known of the base model: its architecture and heads.

    Attributes:
        architecture: general.architecture.
        heads, heads_kv: attention heads for Q and for K.
        tensors: tensor name → shape in numpy's order; None when no file was read.
    """

    architecture: str
    heads: int
    heads_kv: int
    tensors: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, base: str | os.PathLike[str]) -> BaseShape:
        """Read it from the base model's GGUF file.

        Raises:
            UnsupportedModel: the file is a part of a model, or its layers have different numbers of heads.
        """
        with GGUFReader(base) as reader:
            if reader.split[1] > 1:
                raise UnsupportedModel(
                    f"{base} is one part of {reader.split[1]}: join them first, "
                    "`quantize(first_part, target, only_copy=True)` writes one file"
                )
            architecture = reader.architecture
            heads = reader.metadata.get(f"{architecture}.attention.head_count", 0)
            kv = reader.metadata.get(f"{architecture}.attention.head_count_kv", heads)
            if not isinstance(heads, int) or not isinstance(kv, int):
                raise UnsupportedModel(f"{base}: the number of heads differs from layer to layer")
            return cls(architecture, heads, kv, {n: tuple(i.shape[::-1]) for n, i in reader.tensors.items()})


def gguf_pairs(adapter: PeftAdapter, base: BaseShape) -> dict[str, LoraPair]:
    """The adapter's pairs by GGUF tensor name, in the order of rows that the GGUF model has.

    Raises:
        UnsupportedModel: an architecture or a module whose GGUF name is not known.
        InvalidModelFile: a pair does not fit the base model.
    """
    if base.architecture not in KNOWN:
        raise UnsupportedModel(
            f"LoRA adapters of {base.architecture} cannot be converted: known are {', '.join(KNOWN)}"
        )
    pairs: dict[str, LoraPair] = {}
    for module, pair in adapter.pairs.items():
        name = gguf_name(module)
        if name is None:
            raise UnsupportedModel(f"{adapter.path}: no GGUF tensor is known for the module {module!r}")
        shape = base.tensors.get(name)
        if shape is None:
            raise InvalidModelFile(f"{adapter.path}: the base model has no tensor {name} for {module}")
        if shape != (pair.b.shape[0], pair.a.shape[1]):
            raise InvalidModelFile(
                f"{adapter.path}: {module} changes a matrix of {pair.b.shape[0]} × {pair.a.shape[1]}, the base model's "
                f"{name} is {shape[0]} × {shape[1]}: is this its base?"
            )
        b = pair.b
        if base.architecture in PERMUTED and name.endswith((".attn_q.weight", ".attn_k.weight")):
            b = permute_rows(b, base.heads if name.endswith(".attn_q.weight") else base.heads_kv)
        pairs[name] = LoraPair(pair.a, b, pair.scale)
    return pairs


def convert(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: npt.DTypeLike = np.float32,
) -> Path:
    """Turn a PEFT LoRA folder into a GGUF adapter for `base`.

    Args:
        adapter: the folder.
        base: the base model's GGUF file, of any quantization.
        target: the adapter file to write.
        dtype: float32 or float16.

    Raises:
        ModelNotFound, InvalidModelFile, UnsupportedModel: as PeftAdapter.read and gguf_pairs.
    """
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise InvalidRequest(f"an adapter is written as float32 or float16, not {kind}")
    read, shape = PeftAdapter.read(adapter), BaseShape.of(base)
    pairs = gguf_pairs(read, shape)
    alpha = float(read.config.get("lora_alpha", read.config["r"])) or 1.0
    tensors: dict[str, np.ndarray] = {}
    for name, pair in pairs.items():
        rank = pair.a.shape[0]
        # libllama scales by alpha / rank for all alike: what differs (rsLoRA, alpha_pattern) goes into B
        b = pair.b * np.float32(pair.scale * rank / alpha)
        if name == "token_embd.weight":  # rows of the embedding are looked up: A is kept by token
            tensors[name + ".lora_a"], tensors[name + ".lora_b"] = b.astype(kind), pair.a.T.astype(kind)
        else:
            tensors[name + ".lora_a"], tensors[name + ".lora_b"] = pair.a.astype(kind), b.astype(kind)
    metadata: dict[str, Any] = {
        "general.type": "adapter",
        "general.architecture": shape.architecture,
        "general.name": read.path.name or "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    written = write_gguf(target, metadata, tensors)
    check_adapter(written)
    return written
